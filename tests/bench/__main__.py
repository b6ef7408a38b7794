"""`make bench`: run the bench_*.py here and print their tables; --write puts them into docs/performance.md.

A bench module has a docstring, whose first line is the table's title, and `rows() -> list[Row]`.
"""

import argparse
import datetime
import importlib
import os
import platform
import re
from pathlib import Path
from types import ModuleType

import torch

from tests.bench.measure import Row

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "performance.md"


def main() -> None:
    known = sorted(path.stem for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="speed and memory, as ratios in one run")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.modules) - set(known)):
        parser.error(f"no bench {', '.join(unknown)}; known: {', '.join(known)}")
    for name in arguments.modules or known:
        text = table(importlib.import_module(f"tests.bench.{name}"), name)
        print(text, end="\n\n")
        if arguments.write:
            DOCUMENT.write_text(replaced(DOCUMENT.read_text(), name, text))


def table(module: ModuleType, name: str) -> str:
    rows: list[Row] = module.rows()
    lines = [
        (module.__doc__ or name).splitlines()[0],
        "",
        f"{machine()}; {datetime.date.today()}; `python -m tests.bench {name}`",
        "",
        "| what | ours | against | ratio | target |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.what} | {row.ours} | {row.against} | {ratio} | {row.target} |")
    return "\n".join(lines)


def replaced(document: str, name: str, text: str) -> str:
    """The document with the text between <!-- name --> and <!-- /name -->, added at the end if they are not there."""
    block = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
    found = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    if found.search(document):
        return found.sub(lambda _: block, document)
    return f"{document.rstrip()}\n\n{block}\n"


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = model[1]
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
