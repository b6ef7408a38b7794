"""A report of 10,000 cell runs (20 variants x 5 seeds x 5 benchmarks x 10 contexts x 2 scale rules) from MLflow."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.measure import Row
from tests.reports.bulk import write_study_in_bulk
from tests.reports.design import Design, Variant

WORK = """
import sys
from pathlib import Path
from reports.render import write_report
from reports.results import load_study
results = load_study(sys.argv[1], sys.argv[2])
assert len(results.cells) == 10_000
write_report(results, Path(sys.argv[3]))
"""


def rows() -> list[Row]:
    scalings = ("fixed", "dynamic")
    variants = [Variant("m_rope", "corner", "contiguous", "none")]
    variants += [
        Variant(f"variant{place}", "diagonal", f"allocation{place // 2}", scalings[place % 2], 1.0, effect=place / 50)
        for place in range(19)
    ]
    design = Design(
        variants=tuple(variants),
        seeds=tuple(range(5)),
        benchmarks=tuple(f"benchmark{place}" for place in range(5)),
        contexts=tuple(16 * 2**place for place in range(10)),
        questions=50,
        steps=300,
    )
    with tempfile.TemporaryDirectory() as folder:
        uri = write_study_in_bulk(Path(folder), design)
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", WORK, uri, design.name, f"{folder}/report"]
        subprocess.run(command, check=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})
        seconds = time.perf_counter() - start
        page_mb = (Path(folder) / "report" / "report.html").stat().st_size / 2**20
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    memory_gb = used.ru_maxrss / 2**20
    return [
        Row("load and report, 500,000 questions", f"{seconds:.1f} s", "60 s", seconds / 60, "< 1"),
        Row("of which processor time", f"{processor_s:.1f} s", "60 s", processor_s / 60, "< 1"),
        Row("most memory", f"{memory_gb:.2f} GB", "2 GB", memory_gb / 2, "< 1"),
        Row("size of report.html", f"{page_mb:.1f} MB", ""),
    ]
