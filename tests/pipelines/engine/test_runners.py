"""What every runner promises, on each: only what is missing runs, failures stay local, nothing is left behind."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from pipelines.engine import Event, LocalRunner, Store
from pipelines.engine.lease import this_owner
from pipelines.engine.stage import Run
from tests.pipelines.engine import toys
from tests.pipelines.engine.conftest import Launch, MakeRunner
from tests.pipelines.engine.toys import add, fail, runs, toy


class Recorder:
    """An on_event that keeps what happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, key: str) -> list[str]:
        return [event.kind.value for event in self.events if event.stage.config.identity.key == key]


def nothing_is_left(store: Store) -> bool:
    leases = list((store.root / "leases").iterdir())
    return leases == [] and [p for p in store.root.glob("work/*/*") if not p.name.startswith(".")] == []


def test_results_flow_from_inputs_and_are_told_as_they_come(make_runner: MakeRunner, store: Store, desk: Path) -> None:
    a, b = toy(add, "a", desk, value=1), toy(add, "b", desk, value=10)
    both = toy(add, "both", desk, value=100, inputs={"a": a, "b": b})
    told = Recorder()
    summary = make_runner().run([both], told)
    assert summary.ok
    assert summary.artifacts[both.fingerprint].result == {"value": 111}
    assert {stage.config.identity.key for stage in summary.finished} == {"a", "b", "both"}
    assert told.of("both") == ["planned", "started", "finished"]
    assert told.events[-1].artifact == store.get(both)
    assert told.events[-1].duration_s is not None
    assert nothing_is_left(store)


def test_a_second_run_runs_nothing_and_a_third_only_what_is_new(
    make_runner: MakeRunner, store: Store, desk: Path
) -> None:
    a = toy(add, "a", desk)
    make_runner().run([a])
    told = Recorder()
    again = make_runner().run([toy(add, "a", desk)], told)
    assert again.ok
    assert told.of("a") == ["cached"]
    new = toy(add, "new", desk, inputs={"a": a})
    make_runner().run([new, a])
    assert Counter(run["key"] for run in runs(desk)) == {"a": 1, "new": 1}


def test_what_a_stored_stage_rests_on_is_not_needed(make_runner: MakeRunner, store: Store, desk: Path) -> None:
    base = toy(add, "base", desk)
    top = toy(add, "top", desk, inputs={"base": base})
    make_runner().run([top])
    (store.artifact_path("add", base.fingerprint) / "record.json").unlink()
    assert make_runner().run([top]).ok
    assert len(runs(desk)) == 2


def test_a_stage_given_twice_runs_once(make_runner: MakeRunner, desk: Path) -> None:
    stages = [toy(add, "a", desk), toy(add, "a", desk), toy(add, "b", desk, inputs={"x": toy(add, "a", desk)})]
    assert make_runner().run(stages).ok
    assert Counter(run["key"] for run in runs(desk)) == {"a": 1, "b": 1}


def test_a_failure_is_not_retried_blocks_what_rests_on_it_and_nothing_else(
    make_runner: MakeRunner, store: Store, desk: Path
) -> None:
    bad = toy(fail, "bad", desk)
    above = toy(add, "above", desk, inputs={"x": bad})
    top = toy(add, "top", desk, inputs={"x": above})
    other = toy(add, "other", desk)
    told = Recorder()
    summary = make_runner().run([top, other], told)
    assert not summary.ok
    assert [(stage.label, failure.error) for stage, failure in summary.failed] == [
        (bad.label, "RuntimeError: no luck with bad")
    ]
    assert Counter(summary.blocked) == Counter([above, top])
    assert [stage.label for stage in summary.finished] == [other.label]
    assert told.of("bad") == ["planned", "started", "failed"]
    assert told.of("top") == ["planned", "blocked"]
    assert Counter(run["key"] for run in runs(desk)) == {"bad": 1, "other": 1}
    assert nothing_is_left(store)


def test_the_next_run_tries_a_failed_stage_again(make_runner: MakeRunner, desk: Path) -> None:
    bad = toy(fail, "bad", desk)
    make_runner().run([bad])
    make_runner().run([bad])
    assert len(runs(desk, "bad")) == 2


def test_on_failure_stop_starts_nothing_after_the_first_failure(
    make_runner: MakeRunner, store: Store, desk: Path
) -> None:
    bad, hold = toy(fail, "bad", desk), toy(toys.wait_for_gate, "hold", desk)
    rest = [toy(add, f"{number}", desk, inputs={"hold": hold}) for number in range(20)]
    told = Recorder()

    def observe(event: Event) -> None:
        told(event)
        if event.kind.value == "failed":
            (desk / "gate").touch()  # so that what rests on `hold` could run from now on

    summary = make_runner(on_failure="stop").run([bad, *rest], observe)
    kinds = [event.kind.value for event in told.events]
    assert "started" not in kinds[kinds.index("failed") :]
    assert [stage for stage, _ in summary.failed] == [bad]
    assert set(rest) <= set(summary.not_run)
    assert len(summary.not_run) + len(summary.finished) + len(summary.interrupted) == 21
    assert not summary.was_interrupted
    assert nothing_is_left(store)


@pytest.mark.parametrize("kind", ["planned", "started", "finished", "failed"])
def test_an_observer_that_raises_ends_the_run_with_its_exception_and_no_lease(
    make_runner: MakeRunner, store: Store, desk: Path, kind: str
) -> None:
    told = Recorder()

    def observe(event: Event) -> None:
        told(event)
        if kind in {earlier.kind.value for earlier in told.events}:
            raise ConnectionError("tracking server away")

    stages = [toy(add, "a", desk), toy(fail, "bad", desk), toy(add, "b", desk)]
    with pytest.raises(ConnectionError, match="tracking server away"):
        make_runner().run(stages, observe)
    assert store.leases.holders() == {}
    assert told.events[-1].kind == kind, "it was called again after it had raised"
    assert make_runner().run(stages).artifacts.keys() == {stages[0].fingerprint, stages[2].fingerprint}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs_as_interrupted_frees_the_leases_and_keeps_what_was_done(
    make_runner: MakeRunner, store: Store, desk: Path, kind: signal.Signals
) -> None:
    def handler_of_the_caller(signum: int, frame: object) -> None:
        raise AssertionError("the signal was for the runner")

    def interrupt_when_it_runs() -> None:
        toys.wait_until(lambda: runs(desk, "hanging") and told.of("done")[-1:] == ["finished"])
        os.kill(os.getpid(), kind)

    told = Recorder()
    done, hanging = toy(add, "done", desk), toy(toys.wait_for_gate, "hanging", desk, resumable=True)
    above = toy(add, "above", desk, inputs={"x": hanging, "y": done})
    thread = threading.Thread(target=interrupt_when_it_runs)
    thread.start()
    previous = signal.signal(kind, handler_of_the_caller)
    summary = make_runner().run([done, above], told)
    thread.join()
    assert signal.signal(kind, previous) is handler_of_the_caller
    assert summary.was_interrupted
    assert (summary.finished, summary.interrupted, summary.not_run) == ((done,), (hanging,), (above,))
    assert told.of("hanging")[-1] == "interrupted"
    assert not summary.ok
    assert store.leases.holders() == {}
    assert store.failures() == []
    (desk / "gate").touch()
    resumed = make_runner().run([above])
    assert resumed.artifacts[hanging.fingerprint].result == {"found": ["cleaned_up.txt", "partial.txt"]}


@pytest.mark.parametrize(("extra", "remedy"), [("nan", "finite"), ("path", "not JSON"), ("none", "return a dict")])
def test_a_result_that_is_not_json_is_a_failure_that_says_so(
    make_runner: MakeRunner, store: Store, desk: Path, extra: str, remedy: str
) -> None:
    stage = toy(toys.return_extra, "a", desk, extra=extra)
    [(_, failure)] = make_runner().run([stage]).failed
    assert remedy in failure.error
    assert store.get(stage) is None
    assert nothing_is_left(store)


@pytest.mark.parametrize(
    ("run", "error"), [(toys.leave_the_process, "SystemExit: bad argument"), (toys.write_record, "choose another name")]
)
def test_a_stage_that_misbehaves_is_a_failure_and_not_a_retry(
    make_runner: MakeRunner, desk: Path, run: Run, error: str
) -> None:
    [(_, failure)] = make_runner().run([toy(run, "a", desk)]).failed
    assert error in failure.error
    assert (failure.kind, failure.attempt) == ("error", 1)


def test_all_output_of_a_stage_is_in_its_log(make_runner: MakeRunner, store: Store, desk: Path) -> None:
    stage = toy(toys.write_everywhere, "a", desk)
    assert make_runner().run([stage]).ok
    lines = store.log_path(stage.name, stage.fingerprint).read_text().splitlines()
    assert sorted(lines[1:]) == ["from C", "from Python", "from Python's stderr", "from a child process"]


def test_the_output_of_the_launching_process_is_its_own_again_afterwards(
    store: Store, desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LocalRunner(store).run([toy(toys.write_everywhere, "a", desk)])
    os.write(1, b"the launcher speaks")
    assert capfd.readouterr().out == "the launcher speaks"


def test_a_stage_of_another_launcher_is_waited_for_and_taken_when_it_comes(
    make_runner: MakeRunner, launch: Launch, store: Store, desk: Path
) -> None:
    stage = toy(toys.wait_for_gate, "a", desk)
    other = launch("a", "wait_for_gate")
    toys.wait_until(lambda: runs(desk, "a"))
    told = Recorder()

    def open_the_gate_when_waiting(event: Event) -> None:
        told(event)
        if event.kind == "waiting":
            (desk / "gate").touch()

    summary = make_runner().run([stage], open_the_gate_when_waiting)
    assert other.wait() == 0
    assert told.of("a") == ["planned", "started", "waiting", "cached"]
    assert f"process {other.pid} on " in told.events[2].message
    assert summary.artifacts[stage.fingerprint].result == {"found": []}
    assert len(runs(desk, "a")) == 1


def test_a_stage_of_a_killed_launcher_is_taken_over_and_goes_on_from_its_partial_files(
    make_runner: MakeRunner, launch: Launch, store: Store, desk: Path
) -> None:
    stage = toy(toys.wait_for_gate, "a", desk, resumable=True)
    other = launch("a", "wait_for_gate")
    toys.wait_until(lambda: runs(desk, "a"))
    told = Recorder()

    def kill_the_other_when_waiting(event: Event) -> None:
        told(event)
        if event.kind == "waiting":
            other.kill()
            other.wait()
            (desk / "gate").touch()

    summary = make_runner().run([stage], kill_the_other_when_waiting)
    assert told.of("a") == ["planned", "started", "waiting", "started", "finished"]
    assert summary.artifacts[stage.fingerprint].result == {"found": ["partial.txt"]}
    assert nothing_is_left(store)


@pytest.mark.parametrize("stage", ["wait_for_gate", "wait_for_gate_and_fail"])
def test_a_launcher_whose_lease_was_taken_over_records_nothing_and_waits(
    store: Store, desk: Path, launch: Launch, stage: str
) -> None:
    work = toy(getattr(toys, stage), "a", desk)
    late = launch("a", stage)
    toys.wait_until(lambda: runs(desk, "a"))
    holder = store.leases.holder(work.fingerprint)
    assert holder is not None
    taken = store.leases.acquire(work.fingerprint, this_owner(), dead=frozenset({holder.token}))
    (desk / "gate").touch()
    assert late.stdout is not None
    assert [next(late.stdout).split()[0] for _ in range(3)] == ["planned", "started", "waiting"]
    assert store.get(work) is None
    assert store.failure(work) is None
    store.leases.discard(work.fingerprint, taken.owner.token)
    assert [next(late.stdout).split()[0] for _ in range(2)] in (["started", "finished"], ["started", "failed"])
    assert late.wait() == 0


def test_a_stage_that_is_not_resumable_starts_from_an_empty_folder(
    make_runner: MakeRunner, launch: Launch, store: Store, desk: Path
) -> None:
    other = launch("a", "wait_for_gate")
    toys.wait_until(lambda: runs(desk, "a"))
    other.kill()
    other.wait()
    (desk / "gate").touch()
    stage = toy(toys.wait_for_gate, "a", desk, resumable=False)
    summary = make_runner().run([stage])
    assert summary.artifacts[stage.fingerprint].result == {"found": []}
    assert nothing_is_left(store)


def test_a_failure_of_another_launcher_is_taken_over_too_and_not_repeated(
    make_runner: MakeRunner, store: Store, desk: Path
) -> None:
    stage = toy(fail, "a", desk)
    store.prepare()
    lease = store.leases.acquire(stage.fingerprint, this_owner())

    def let_the_other_fail_when_waiting(event: Event) -> None:
        if event.kind == "waiting":
            elsewhere = Store(store.root.with_name("elsewhere"))
            LocalRunner(elsewhere).run([stage])
            failure = elsewhere.failure(stage)
            assert failure is not None
            store.write_failure(failure)
            store.leases.discard(stage.fingerprint, lease.owner.token)

    [(failed, failure)] = make_runner().run([stage], let_the_other_fail_when_waiting).failed
    assert failed is stage
    assert failure.error == "RuntimeError: no luck with a"
    assert len(runs(desk, "a")) == 1


@pytest.mark.parametrize("launchers", [3])
def test_launchers_on_one_store_run_each_stage_once_between_them(
    make_runner: MakeRunner, launch: Launch, store: Store, desk: Path, launchers: int
) -> None:
    keys = [f"{number}" for number in range(40)]
    others = [launch(",".join(keys), "add", wait_for="go") for _ in range(launchers - 1)]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    (desk / "go").touch()
    summary = make_runner().run([toy(add, key, desk) for key in keys])
    assert [other.wait() for other in others] == [0] * (launchers - 1)
    assert summary.ok
    assert Counter(run["key"] for run in runs(desk)) == Counter(keys)
    assert len({run["pid"] for run in runs(desk)}) > 1, "one launcher did all: this run shows nothing"
    assert nothing_is_left(store)
