import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import ray
from rich.console import Console

from experiments.cli import main
from experiments.compose import load_config
from experiments.settled import database_state, is_reported, settle, settled_runs
from experiments.study import open_mirror, open_study

HEAVY = {"torch", "transformers", "accelerate", "ray", "mlflow", "scipy", "pandas", "matplotlib"}
HOPE = """
import json, sys
from experiments.cli import main

for words in json.loads(sys.argv[1]):
    assert main(words) == 0
    print("IMPORTED", *{name.split(".")[0] for name in sys.modules})
"""


def hope(*commands: Sequence[str]) -> tuple[str, list[set[str]]]:
    """What commands print, one after the other in a process of their own, and the heavy libraries that it then has."""
    words = [sys.executable, "-c", HOPE, json.dumps(commands)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    imported = [HEAVY & set(line.split()) for line in lines if line.startswith("IMPORTED")]
    return "\n".join(line for line in lines if not line.startswith("IMPORTED")), imported


def test_a_study_of_which_no_training_went_well_is_reported_in_one_line(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small, "study.variants=[m_rope]", "study.scale_rules=[published]", "recipe.lr=1e30"]
    assert main(["run", *overrides]) == 1
    capsys.readouterr()
    assert main(["report", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no cell to report; 1 of 1 trainings failed, one with FloatingPointError: " in line


def test_a_finished_study_imports_nothing_heavy_and_keeps_its_report_until_something_is_changed(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = load_config(finished)
    report, database = config.report_dir / "report.html", Path(config.store) / "mlflow.db"
    assert main(["run", *finished]) == 0
    first = capsys.readouterr().out
    assert main(["compare", "m_rope-s0", "hope-s0", *finished]) == 0
    assert "v_niah_d" in capsys.readouterr().out
    assert main(["compare", "m_rope-s0", "nobody", *finished]) == 2
    assert "nobody" in capsys.readouterr().err
    whole, made = report.read_bytes(), report.stat().st_mtime_ns

    shutil.rmtree(Path(config.store) / "artifacts" / "features")  # what only finished stages rest on is not missed
    again, imported = hope(["run", *finished])
    assert imported == [set()]
    assert "nothing to do: every cell is done" in again
    assert first.splitlines()[-8:] == again.splitlines()[-8:]  # the same table
    assert report.stat().st_mtime_ns == made

    report.write_text("edited")
    report.with_name("tables.tex").unlink()
    assert main(["run", *finished]) == 0
    assert report.read_bytes() == whole
    assert report.with_name("tables.tex").is_file()
    assert not ray.is_initialized()

    study = open_study(finished)
    mirror = open_mirror(study, Console())
    assert is_reported(study, settled_runs(study) or "")
    assert is_reported(study, mirror.digest_of_runs())
    with closing(sqlite3.connect(database)) as written:
        written.execute("UPDATE latest_metrics SET value = 0.125 WHERE key = 'duration_s'")
        written.commit()
    assert settled_runs(study) is None
    assert not is_reported(study, mirror.digest_of_runs())

    # A database that is lost; in another place, as MLflow keeps the one that it knows open.
    moved = tmp_path / "moved"
    shutil.copytree(config.store, moved, ignore=shutil.ignore_patterns("mlflow.db*"))
    assert main(["run", *finished, f"store={moved}"]) == 0
    with closing(sqlite3.connect(moved / "mlflow.db")) as refilled:
        ((runs,),) = refilled.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'")
    assert runs == 1 + len(study.grid.trials) + len(study.grid.cells)


@pytest.mark.parametrize("kept_characters", [0, 9])
def test_a_settled_file_that_was_cut_off_settles_nothing(finished: list[str], kept_characters: int) -> None:
    study = open_study(finished)
    settle(study, database=database_state(study.config.tracking), runs="all")
    assert settled_runs(study) == "all"
    (file,) = (study.store.root / "sync").iterdir()
    file.write_text(file.read_text()[:kept_characters])
    assert settled_runs(study) is None


def test_commands_that_look_at_the_store_import_nothing_heavy_but_for_the_statistics_of_a_plan(
    small: list[str],
) -> None:
    _, imported = hope(["status", *small], ["explain", "--cell", "*", *small], ["plan", *small])
    assert imported == [set(), set(), {"scipy"}]
