"""A study with an axis, from the command line to the report."""

from pathlib import Path

import pytest

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import LocalRunner, Store
from tests.experiments.runs import check_tree, runs_of

RATES = (0.001, 0.004)  # the first is the recipe's own: what is done without axes counts


@pytest.fixture
def rates(finished: list[str]) -> list[str]:
    """Overrides of the small study at two learning rates, with every stage done; nothing is in MLflow yet."""
    overrides = [*finished, f"study.axes={{recipe.lr: {list(RATES)}}}"]
    config, _ = load_config(overrides)
    assert LocalRunner(Store(Path(config.store))).run(build_grid(config).targets).ok
    return overrides


def test_a_study_with_an_axis_is_planned_tracked_reported_and_explained_by_setting(
    rates: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *rates]) == 0
    check_tree(rates)
    trials = [run for run in runs_of(rates) if run.data.tags["kind"] == "trial"]
    assert sorted({float(run.data.params["recipe.lr"]) for run in trials}) == list(RATES)

    page = (load_config(rates)[0].report_dir / "report.html").read_text()
    assert "recipe.lr=0.004" in page

    capsys.readouterr()
    assert main(["status", *rates]) == 0
    assert "16 of 16 cells done" in capsys.readouterr().out
    cell = next(cell.id for cell in build_grid(load_config(rates)[0]).cells if "0.004" in cell.id)
    assert main(["explain", *rates, "--cell", cell]) == 0
    assert "done  finetune m_rope[recipe.lr=0.004]-s0" in capsys.readouterr().out
    moved = f"study.axes={{recipe.lr: {[RATES[0], 0.002]}}}"
    assert main(["explain", *rates, moved, "--cell", cell.replace("0.004", "0.002")]) == 0
    assert "config.recipe.lr: 0.004 -> 0.002" in capsys.readouterr().out
