"""Stages: what is identity and what is not, and the graph."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import Resources, Stage, StageConfig, walk
from tests.pipelines.engine.toys import Desk, Toy, add, fail, nothing, toy

HERE = Path("here")
BASE = Stage("add", 1, add, StageConfig(Toy("a", 1), Desk(HERE)))


@pytest.mark.parametrize(
    "change",
    [
        {"config": StageConfig(Toy("a", 1), Desk(Path("elsewhere"), "more"))},
        {"config": StageConfig(Toy("a", 1))},
        {"resources": Resources(num_cpus=8, num_gpus=4, memory_gib=100)},
        {"label": "the first cell"},
        {"resumable": True},
        {"process_group": "trial-7"},
        {"work_units": 1000.0},
        {"run": nothing},
    ],
    ids=lambda change: next(iter(change)),
)
def test_where_and_how_a_stage_runs_is_not_its_identity(change: dict[str, Any]) -> None:
    assert replace(BASE, **change).fingerprint == BASE.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sum"},
        {"code_version": 2},
        {"config": StageConfig(Toy("a", 2), Desk(HERE))},
        {"inputs": {"left": toy(add, "b", HERE)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_a_stage_computes_is_its_identity(change: dict[str, Any]) -> None:
    assert replace(BASE, **change).fingerprint != BASE.fingerprint


def test_a_change_of_an_input_and_of_its_role_changes_what_rests_on_it() -> None:
    def rests_on(inputs: dict[str, Stage]) -> str:
        return toy(add, "top", HERE, inputs=inputs).fingerprint

    a, b = toy(add, "a", HERE), toy(add, "b", HERE)
    seen = {rests_on({"x": a}), rests_on({"x": b}), rests_on({"y": a}), rests_on({"x": a, "y": b})}
    assert len(seen) == 4
    assert rests_on({"x": a, "y": b}) == rests_on({"y": b, "x": a})


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"run": lambda config, inputs, out_dir: {}}, "module level"),
        ({"name": "Fine Tune"}, "lower-case"),
        ({"name": "../up"}, "lower-case"),
        ({"work_units": 0}, "above 0"),
    ],
)
def test_a_stage_that_cannot_be_stored_or_sent_is_refused_where_it_is_written(
    change: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(BASE, **change)


def test_a_walk_gives_inputs_first_and_a_shared_input_once() -> None:
    frames = toy(add, "frames", HERE)
    left, right = toy(add, "left", HERE, inputs={"f": frames}), toy(add, "right", HERE, inputs={"f": frames})
    again = toy(add, "frames", Path("other desk"))
    top = toy(fail, "top", HERE, inputs={"l": left, "r": right, "f": again})
    assert [stage.config.identity.key for stage in walk([left, top, top])] == ["frames", "left", "right", "top"]


def test_a_chain_deeper_than_the_recursion_limit_is_walked() -> None:
    stage = toy(add, "0", HERE)
    for depth in range(1, 5000):
        stage = toy(add, str(depth), HERE, inputs={"below": stage})
    assert sum(1 for _ in walk([stage])) == 5000
