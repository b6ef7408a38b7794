"""Leases: one holder at a time, a dead one's work goes to exactly one other, a late one may not publish."""

import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from pipelines.engine import LeaseHeld, LeaseLost, LocalRunner, Store
from pipelines.engine.lease import Holder, Leases, LeaseWatch, Owner, is_dead, this_owner
from tests.pipelines.engine.toys import add, runs, toy, wait_until

SPAWN = multiprocessing.get_context("spawn")
ELSEWHERE = Owner(token="far", machine="another machine", host="far", pid=1, process_start="1")


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    folder = tmp_path / "leases"
    folder.mkdir()
    return Leases(folder, heartbeat_s=0.05)


def seen(leases: Leases, fingerprint: str) -> Holder:
    holder = leases.holder(fingerprint)
    assert holder is not None
    return holder


def take_and_die(folder: Path, fingerprint: str) -> None:
    Leases(folder).acquire(fingerprint, this_owner())
    os.kill(os.getpid(), signal.SIGKILL)


def leave_dead_holder(leases: Leases, *fingerprints: str) -> None:
    for fingerprint in fingerprints:
        process = SPAWN.Process(target=take_and_die, args=(leases.folder, fingerprint))
        process.start()
        process.join()


def test_a_held_lease_is_refused_with_its_holder_and_free_again_after_the_block(leases: Leases) -> None:
    with leases.acquire("f", this_owner()):
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "):
            leases.acquire("f", this_owner())
        assert set(leases.holders()) == {"f"}
    assert leases.holders() == {}
    with leases.acquire("f", this_owner()) as again:
        assert again.generation == 1


def race(folder: Path, fingerprints: list[str], start: Barrier, won: "multiprocessing.Queue[str]") -> None:
    leases = Leases(folder)
    start.wait()
    for fingerprint in fingerprints:
        try:
            leases.acquire(fingerprint, this_owner())
            won.put(fingerprint)
        except LeaseHeld:
            pass
    start.wait()  # nobody ends, and so nobody is found dead, before all have tried


@pytest.mark.parametrize(("contenders", "count"), [(2, 200), (6, 50)])
@pytest.mark.parametrize("after_a_kill", [False, True], ids=["free", "left by a dead process"])
def test_of_many_contenders_exactly_one_gets_each_lease(
    leases: Leases, contenders: int, count: int, after_a_kill: bool
) -> None:
    fingerprints = [f"f{number}" for number in range(count)]
    if after_a_kill:
        leave_dead_holder(leases, "f0")
        text = (leases.folder / "f0.1").read_text()
        for fingerprint in fingerprints:
            (leases.folder / f"{fingerprint}.1").write_text(text)
    start, won = SPAWN.Barrier(contenders), SPAWN.Queue()
    processes = [SPAWN.Process(target=race, args=(leases.folder, fingerprints, start, won)) for _ in range(contenders)]
    for process in processes:
        process.start()
    wins = Counter(won.get() for _ in range(count))
    for process in processes:
        process.join()
    assert won.empty()
    assert wins == Counter(fingerprints)


def test_a_killed_holder_on_this_machine_is_dead_at_once(leases: Leases) -> None:
    leave_dead_holder(leases, "f")
    with leases.acquire("f", this_owner()) as lease:
        assert lease.generation == 2
        lease.check()
    assert os.listdir(leases.folder) == []


def test_a_holder_that_ended_and_was_not_reaped_is_dead(leases: Leases) -> None:
    child = os.fork()
    if child == 0:
        leases.acquire("f", this_owner())
        os._exit(0)
    wait_until(lambda: is_dead(seen(leases, "f")) if leases.holders() else False)
    assert Path(f"/proc/{child}").exists()
    os.waitpid(child, 0)


def test_another_process_with_the_pid_of_a_dead_holder_is_not_the_holder(leases: Leases) -> None:
    leases.acquire("f", replace(this_owner(), process_start="12"))
    assert leases.acquire("f", this_owner()).generation == 2


def test_a_held_lease_beats(leases: Leases) -> None:
    with leases.acquire("f", this_owner()):
        first = seen(leases, "f").beat_ns
        wait_until(lambda: seen(leases, "f").beat_ns > first)


def test_a_holder_elsewhere_is_alive_while_its_heart_beats_and_dead_when_it_stands_still(leases: Leases) -> None:
    leases.acquire("f", ELSEWHERE)
    with pytest.raises(LeaseHeld):
        leases.acquire("f", this_owner())
    watch = LeaseWatch(ttl_s=0.0)  # dead as soon as one beat is seen twice
    for beat_ns in (10**9, 2 * 10**9, 3 * 10**9):
        os.utime(leases.folder / "f.1", ns=(beat_ns, beat_ns))
        assert not watch.stands_still(seen(leases, "f"))
    assert watch.stands_still(seen(leases, "f"))
    assert not LeaseWatch(ttl_s=3600.0).stands_still(seen(leases, "f"))
    assert leases.acquire("f", this_owner(), dead=frozenset({"far"})).generation == 2


def test_a_holder_that_was_taken_over_cannot_publish_and_does_not_free_the_other(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    store.prepare()
    late = store.leases.acquire(stage.fingerprint, ELSEWHERE)
    with late:
        store.leases.acquire(stage.fingerprint, this_owner(), dead=frozenset({"far"}))
        with pytest.raises(LeaseLost, match="taken over"):
            late.check()
    holder = store.leases.holder(stage.fingerprint)
    assert holder is not None
    assert holder.generation == 2


def test_a_lease_of_a_process_killed_before_it_wrote_its_owner_is_taken_over_soon(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    patient = Store(store.root, lease_ttl_s=3600.0)  # a heartbeat that stands still would take as long
    patient.prepare()
    (patient.leases.folder / f"{stage.fingerprint}.1").touch()
    with pytest.raises(LeaseHeld):
        patient.leases.acquire(stage.fingerprint, this_owner())
    assert LocalRunner(patient).run([stage]).ok


def test_a_lost_lease_is_not_kept_alive_by_the_one_who_lost_it(leases: Leases) -> None:
    with leases.acquire("f", ELSEWHERE) as late:
        leases.acquire("f", this_owner(), dead=frozenset({"far"}))
        wait_until(lambda: not late.is_beating)


def test_a_lease_killed_between_its_creation_and_its_first_byte_is_waited_for_and_then_taken(
    store: Store, desk: Path
) -> None:
    stage = toy(add, "a", desk)
    store.prepare()
    (store.root / "leases" / f"{stage.fingerprint}.1").touch()
    kinds = []
    summary = LocalRunner(store, poll_s=0.05).run([stage], lambda event: kinds.append(event.kind.value))
    assert summary.ok
    assert kinds == ["planned", "started", "waiting", "started", "finished"]
    assert len(runs(desk)) == 1
