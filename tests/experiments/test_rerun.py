import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.rerun import open_rerun
from pipelines.engine import State, plan

GROWN = (
    "benchmark=v_niah",
    "benchmarks.v_niah.num_validation_films=1",
    "benchmarks.v_niah.videos_per_depth=1",
    "benchmarks.v_niah.depths=[0.0,0.5,1.0]",
)


def to_run(overrides: list[str]) -> list[str]:
    """The labels of the stages that a rerun would run."""
    study = open_rerun(overrides).study
    return [item.stage.label for item in plan(study.store, study.selected.targets) if item.state != State.DONE]


def test_a_new_benchmark_runs_its_own_cells_only(finished: list[str]) -> None:
    # m_rope has no scale, so that both scale rules share its evaluation.
    assert sorted(to_run([*finished, *GROWN])) == [
        "evaluate hope-s0 on v_niah, scale 0.75",
        "evaluate hope-s0 on v_niah, searched scale",
        "evaluate m_rope-s0 on v_niah, scale 1",
        "evaluate m_rope-s0 on v_niah, searched scale",
    ]
    assert to_run(finished) == []


def test_a_benchmark_whose_content_changed_counts_as_new(finished: list[str]) -> None:
    changed = [*finished, "benchmarks.v_niah_d.depths=[0.0,1.0]", "study.scale_rules=[published]"]
    assert [label.split(",")[0] for label in to_run(changed)] == [
        "evaluate m_rope-s0 on v_niah_d",
        "evaluate hope-s0 on v_niah_d",
    ]


def test_a_trial_without_a_checkpoint_is_listed_and_never_trained(finished: list[str], tmp_path: Path) -> None:
    work = open_rerun([*finished, *GROWN, "study.seeds=[0,1]"])
    assert [trial.name for trial in work.untrained] == ["m_rope-s1", "hope-s1"]
    assert {cell.trial.name for cell in work.study.selected.cells} == {"m_rope-s0", "hope-s0"}
    assert not any("finetune" in label for label in to_run([*finished, *GROWN, "study.seeds=[0,1]"]))


def test_cells_of_other_benchmarks_that_are_missing_are_left(finished: list[str], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "out" / "artifacts" / "evaluate")
    assert all("on v_niah," in label for label in to_run([*finished, *GROWN]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "has no checkpoint of study 'smoke' with these settings; train it first: hope run study=smoke"),
        (["benchmark=nope"], "unknown benchmark 'nope'; there are longvideobench"),
    ],
)
def test_a_rerun_that_cannot_be_is_one_line_and_writes_nothing(
    overrides: list[str], message: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rerun", *small, *overrides]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
