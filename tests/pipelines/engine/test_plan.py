"""Plans and explanations."""

import shutil
from pathlib import Path

import pytest

from pipelines.engine import ABSENT, Difference, LocalRunner, Store, explain, plan
from pipelines.engine.lease import this_owner
from tests.pipelines.engine.toys import add, fail, nothing, toy


def test_a_plan_lists_inputs_first_with_the_state_of_each(store: Store, desk: Path) -> None:
    done = toy(add, "done", desk)
    failed = toy(fail, "failed", desk, inputs={"below": done})
    missing = toy(add, "missing", desk, inputs={"below": failed})
    leased = toy(add, "leased", desk)
    LocalRunner(store).run([done, failed])
    with store.leases.acquire(leased.fingerprint, this_owner()):
        planned = plan(store, [missing, leased])
    assert [(p.stage.config.identity.key, p.state.value) for p in planned] == [
        ("done", "done"),
        ("failed", "failed"),
        ("missing", "missing"),
        ("leased", "leased"),
    ]


def test_a_lost_artifact_that_only_finished_stages_rest_on_is_not_to_be_made_again(store: Store, desk: Path) -> None:
    lost = toy(add, "lost", desk)
    done = toy(add, "done", desk, inputs={"below": lost})
    new = toy(add, "new", desk, inputs={"below": lost})
    LocalRunner(store).run([done])
    shutil.rmtree(store.get(lost).path)
    assert [(p.stage.config.identity.key, p.state.value) for p in plan(store, [done])] == [("done", "done")]
    assert [p.stage.config.identity.key for p in plan(store, [done, new])] == ["lost", "done", "new"]


def test_expected_time_is_the_recorded_time_of_like_stages_per_unit_of_work(store: Store, desk: Path) -> None:
    stages = [toy(nothing, f"{units}", desk, work_units=units) for units in (1.0, 2.0, 4.0)]
    LocalRunner(store).run(stages)
    rates = sorted(
        record.provenance["process"]["duration_s"] / record.work_units for record in store.records("nothing")
    )
    unknown, tenfold = plan(store, [toy(add, "new", desk), toy(nothing, "new", desk, work_units=10.0)])
    assert unknown.expected_s is None
    assert tenfold.expected_s == pytest.approx(10 * rates[1])


def test_an_explanation_names_the_fields_that_changed_down_to_the_inputs(store: Store, desk: Path) -> None:
    def cell(fps: int, scale: int, **more: int) -> list[object]:
        frames = toy(add, "frames", desk, value=fps)
        tuned = toy(add, "tuned", desk, inputs={"frames": frames})
        return [toy(nothing, "cell", desk, value=scale, inputs={"tuned": tuned, "frames": frames}, **more)]

    LocalRunner(store).run(cell(2, 1))
    record, differences = explain(store, cell(1, 3)[0])
    assert record is not None
    assert differences == [
        Difference("config.value", 1, 3),
        Difference("inputs.frames.config.value", 2, 1),
        Difference("inputs.tuned.inputs.frames.config.value", 2, 1),
    ]
    assert str(differences[0]) == "config.value: 1 -> 3"


def test_an_input_that_came_is_explained_as_such(store: Store, desk: Path) -> None:
    frames = toy(add, "frames", desk)
    LocalRunner(store).run([toy(nothing, "cell", desk)])
    _, differences = explain(store, toy(nothing, "cell", desk, inputs={"frames": frames}))
    assert differences == [Difference("inputs.frames", ABSENT, frames.fingerprint)]


def test_a_stage_that_never_ran_has_no_nearest_record_and_a_stored_one_no_difference(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    assert explain(store, stage) == (None, [])
    LocalRunner(store).run([stage])
    assert explain(store, stage)[1] == []
