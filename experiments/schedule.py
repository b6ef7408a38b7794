"""Re-runs at cron times or when a watched folder changes: `hope schedule add|list|remove|start`.

The jobs are APScheduler's, in schedule.db of the store, so that they survive every restart. APScheduler keeps a job as
a pickle: the file is made readable and writable by its owner only, and holds plain values and the name of `fire`.

APScheduler's own loop takes a job off the list before it has run, and does not see jobs that another process adds. The
loop here fires what is due, one job at a time, and moves a job to its next time when it has ended: what was missed or
cut off runs once, not once per missed time.
"""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from apscheduler.job import Job
from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from experiments.compose import load_config, quoted
from experiments.firing import Firing, Tell, missing_stages, record_firing, study_run_of
from experiments.study import INTERRUPTED, open_study
from pipelines.engine import Store, hide_passwords

POLL_S = 5.0
LONGEST_S = 365 * 24 * 3600


@dataclass(frozen=True)
class Task:
    """What a job does: `hope rerun` with these overrides. Of a watched folder, the states last seen and acted upon."""

    store: str
    name: str
    overrides: tuple[str, ...]
    cause: str
    watch: str | None = None
    seen: str | None = None
    done: str | None = None


class AlreadyRunning(ValueError):
    """Another scheduler, or a re-run that a killed one started, works on this store."""


class Schedule:
    """The jobs of one store. Use as a context manager."""

    def __init__(self, store: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.store = store.resolve()
        self._clock = clock
        database = self.store / "schedule.db"
        Store(self.store).prepare()
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
        self._scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(f"sqlite:///{database}")})

    def __enter__(self) -> "Schedule":
        self._scheduler.start(paused=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.shutdown(wait=False)

    def add(self, trigger: Any, task: Task) -> Job:
        """Raises ValueError where the name is taken."""
        try:
            return self._scheduler.add_job(
                "experiments.schedule:fire",
                trigger,
                id=task.name,
                kwargs={"task": asdict(task)},
                next_run_time=trigger.get_next_fire_time(None, self._clock()),
            )
        except ConflictingIdError:
            raise ValueError(
                f"schedule {task.name!r} is there already; hope schedule remove {task.name}, or take another name"
            ) from None

    def remove(self, name: str) -> None:
        """Raises ValueError for an unknown name."""
        try:
            self._scheduler.remove_job(name)
        except JobLookupError:
            known = ", ".join(job.id for job in self.jobs()) or "none"
            raise ValueError(f"no schedule {name!r} in {self.store}; there are {known}") from None

    def jobs(self) -> list[Job]:
        """All jobs, the next one first."""
        jobs: list[Job] = self._scheduler.get_jobs()
        return jobs

    def run_due(self, tell: Tell, lock: int | None = None) -> list[Firing]:
        """Fire every job that is due, one after another, each once however many of its times have passed.

        `lock`: a file descriptor that a re-run keeps open, so that it is known to run when this process is gone.
        """
        fired = []
        for job in self.jobs():
            if job.next_run_time > self._clock():
                continue
            task = Task(**job.kwargs["task"])
            is_wanted, looked = look(task)
            if is_wanted:
                firing = fire(job.kwargs["task"], due=job.next_run_time.isoformat(), tell=tell, lock=lock)
                fired.append(firing)
                if firing.exit_code == INTERRUPTED or firing.exit_code < 0:
                    looked = replace(looked, done=task.done)  # killed: at its next time again
            # Only the ends of firings move a job on: one cut off with this process is due again at the next start.
            after = self._clock() + timedelta(microseconds=1)
            self._scheduler.modify_job(
                job.id, kwargs={"task": asdict(looked)}, next_run_time=job.trigger.get_next_fire_time(None, after)
            )
        return fired

    def run(self, tell: Tell, *, once: bool) -> None:
        """Fire what is due, and unless `once` go on until interrupted. Raises AlreadyRunning."""
        with only_scheduler(self.store) as lock:
            while True:
                self.run_due(tell, lock)
                if once:
                    return
                waits = [
                    (job.next_run_time - self._clock()).total_seconds() for job in self.jobs() if job.next_run_time
                ]
                time.sleep(max(0.0, min([POLL_S, *waits])))


def cron(crontab: str) -> CronTrigger:
    """Cron times, in this machine's time zone. Raises ValueError for what is no such time, or one that never comes."""
    fields = crontab.split()
    if len(fields) == 5 and any(character.isdigit() for character in fields[4]):
        raise ValueError(
            f"--cron {crontab!r}: write days of the week as mon ... sun; cron programs count them differently"
        )
    try:
        trigger = CronTrigger.from_crontab(crontab)
    except ValueError as error:
        raise ValueError(
            f"--cron {crontab!r} is no time ({error}); give minute hour day month weekday, as in '0 3 * * *'"
        ) from None
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError(f"--cron {crontab!r} never comes; give a day that its months have")
    return trigger


def every(seconds: float) -> IntervalTrigger:
    """Times so far apart. Raises ValueError for an interval that is none, or longer than a year."""
    if not 0 < seconds <= LONGEST_S:
        raise ValueError(f"--every-s is {seconds}; give seconds above 0, at most {LONGEST_S}, a year")
    return IntervalTrigger(seconds=seconds)


def make_task(name: str, overrides: Sequence[str], *, crontab: str | None, watch: Path | None) -> Task:
    """What a job does at cron times, or when the watched folder differs from now. Raises ValueError for bad values.

    The store among the overrides becomes a full path, as a schedule is started from any folder.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"schedule name {name!r}: use letters, digits, - and _")
    store = str(Path(open_study(overrides).config.store).resolve())
    kept = (*(override for override in overrides if not override.startswith("store=")), f"store={quoted(store)}")
    load_config(kept)  # what a firing will read
    if watch is None:
        return Task(store, name, kept, f"cron {crontab}")
    state = folder_state(watch)
    if state is None:
        raise ValueError(f"--watch {str(watch)!r} is no folder; give the folder of a benchmark")
    return Task(store, name, kept, f"{watch.resolve()} changed", str(watch.resolve()), seen=state, done=state)


def look(task: Task) -> tuple[bool, Task]:
    """Whether a due task shall run, and the task as it is afterwards.

    One that watches a folder runs when the folder differs from when it last ran and holds still since the last look.
    """
    if task.watch is None:
        return True, task
    state = folder_state(Path(task.watch))
    if state is None or state == task.done:  # None: unmounted, or being replaced
        return False, replace(task, seen=state)
    is_settled = state == task.seen
    return is_settled, replace(task, seen=state, done=state if is_settled else task.done)


def folder_state(folder: Path) -> str | None:
    """A digest of every file's name, size and time of change; None where there is no folder.

    It only says when to look: what is new is decided by the benchmark's content.
    """
    if not folder.is_dir():
        return None
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fire(task: dict[str, Any], due: str = "", tell: Tell = print, lock: int | None = None) -> Firing:
    """Run `hope rerun` in a process of its own and record the firing in the store and in MLflow.

    Raises KeyboardInterrupt after the process and the record ended, when that is what ended it.
    """
    name, overrides, store = task["name"], list(task["overrides"]), Path(task["store"])
    started = datetime.now(UTC)
    firing_id = f"{name}-{started:%Y%m%dT%H%M%S%f}Z"
    log = store / "logs" / "schedule" / f"{firing_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shown = shlex.join(["hope", "rerun", *map(hide_passwords, overrides)])
    tell(f"{name}: {task['cause']}; {shown}")
    missing_before = missing_stages(overrides)
    clock = time.monotonic()
    with log.open("ab") as output:
        command = [sys.executable, "-m", "experiments", "rerun", *overrides]
        exit_code, was_interrupted = run_to_end(command, output.fileno(), () if lock is None else (lock,))
    missing = set(missing_stages(overrides))
    firing = Firing(
        id=firing_id,
        job=name,
        cause=task["cause"],
        due=due,
        started=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - clock, 3),
        command=shown,
        exit_code=exit_code,
        ran=tuple(label for label in missing_before if label not in missing),
        study_run=study_run_of(overrides),
        log=str(log.relative_to(store)),
    )
    tell(f"{name}: exit code {exit_code}, {len(firing.ran)} stages ran in {firing.duration_s:.0f} s; log: {log}")
    record_firing(store, firing, overrides, tell)
    if was_interrupted:
        raise KeyboardInterrupt
    return firing


def run_to_end(command: list[str], output: int, keep_open: Sequence[int]) -> tuple[int, bool]:
    """Run a process; its exit code, and whether a Ctrl-C here, which is passed on to it once, ended it."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=keep_open, start_new_session=True
    )
    try:
        return child.wait(), False
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        return child.wait(), True


@contextmanager
def only_scheduler(store: Path) -> Iterator[int]:
    """Hold the store's scheduler lock, which ends with the last process that has the yielded descriptor open."""
    descriptor = os.open(store / "schedule.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise AlreadyRunning(f"{holder} schedules in {store}, or a re-run of it goes on; one at a time") from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
