"""What every runner promises: events as they happen, a summary at the end, a clean end on a signal."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import Literal, Protocol

from pipelines.engine.stage import Artifact, Stage
from pipelines.engine.store import Failure

OnFailure = Literal["continue", "stop"]


class EventKind(StrEnum):
    PLANNED = "planned"  # is missing and will run
    CACHED = "cached"  # was in the store, or another launcher made it
    STARTED = "started"
    FINISHED = "finished"
    RETRYING = "retrying"  # an infrastructure fault; the message says which
    WAITING = "waiting"  # another launcher works on it, or the node that it needs is away; the message says which
    FAILED = "failed"
    BLOCKED = "blocked"  # rests on a failed stage, is not run
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Event:
    """Something that happened to a stage, told in the launching process as it happens."""

    kind: EventKind
    stage: Stage
    artifact: Artifact | None = None
    failure: Failure | None = None
    attempt: int = 1
    expected_s: float | None = None
    duration_s: float | None = None
    message: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended; each needed stage is in one of the tuples. `artifacts` are by fingerprint."""

    artifacts: Mapping[str, Artifact]
    cached: tuple[Stage, ...]
    finished: tuple[Stage, ...]
    failed: tuple[tuple[Stage, Failure], ...]
    blocked: tuple[Stage, ...]
    interrupted: tuple[Stage, ...]
    not_run: tuple[Stage, ...]
    was_interrupted: bool
    elapsed_s: float

    @property
    def ok(self) -> bool:
        return not (self.failed or self.blocked or self.interrupted or self.not_run or self.was_interrupted)


class Runner(Protocol):
    """Runs what is missing of the given stages and of what they rest on."""

    def run(self, stages: Sequence[Stage], on_event: OnEvent) -> Summary:
        """Report each event as it happens. If `on_event` raises, the run stops, frees its leases and re-raises."""


def ignore(event: Event) -> None:
    """An `on_event` for callers that only want the summary."""


@contextlib.contextmanager
def signals_call(handler: Callable[[int, FrameType | None], None]) -> Iterator[Callable[[], None]]:
    """Send SIGINT and SIGTERM to `handler`; yields a function that installs it again after a library replaced it.

    Python delivers signals to the main thread only: elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.getsignal(kind) for kind in kinds}

    def install() -> None:
        for kind in kinds:
            signal.signal(kind, handler)

    install()
    try:
        yield install
    finally:
        for kind, old in previous.items():
            signal.signal(kind, old)
