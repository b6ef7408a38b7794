"""One attempt at a stage, called as a worker calls it."""

import multiprocessing
import os
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

from pipelines.engine import Stage, Store
from pipelines.engine.execute import Outcome, execute, make_job
from tests.pipelines.engine.toys import add, runs, toy

SPAWN = multiprocessing.get_context("spawn")


def attempt(store: Store, stage: Stage, token: str) -> Outcome:
    return execute(store, make_job(stage, {}, launch={}, token=token, attempt=1, dead=frozenset()))


def insist(root: Path, desk: Path, keys: list[str], token: str, start: Barrier) -> None:
    """Try each stage until its artifact is there, with no pause, as many launchers with bad luck would."""
    store = Store(root)
    start.wait()
    for key in keys:
        while attempt(store, toy(add, key, desk), token).artifact is None:
            os.sched_yield()  # where cores are fewer than contenders, the holder must get its turn


def test_contenders_that_never_pause_run_each_stage_once_between_them(store: Store, desk: Path) -> None:
    # Some of them look just before another publishes, and get the lease just after it was given back.
    store.prepare()
    keys = [f"{number}" for number in range(150)]
    start = SPAWN.Barrier(3)
    contenders = [
        SPAWN.Process(target=insist, args=(store.root, desk, keys, f"contender-{number}", start)) for number in range(3)
    ]
    for contender in contenders:
        contender.start()
    for contender in contenders:
        contender.join()
    assert [contender.exitcode for contender in contenders] == [0, 0, 0]
    assert Counter(run["key"] for run in runs(desk)) == Counter(keys)
    assert store.leases.holders() == {}


def test_an_artifact_that_was_found_has_no_duration_and_one_that_was_made_has(store: Store, desk: Path) -> None:
    store.prepare()
    stage = toy(add, "a", desk)
    made, found = attempt(store, stage, "first"), attempt(store, stage, "second")
    assert made.artifact == found.artifact == store.get(stage)
    assert made.duration_s is not None
    assert found.duration_s is None
