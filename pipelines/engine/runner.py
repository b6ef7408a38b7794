"""What every runner shares: its contract, the events it reports, and which stages may run next."""

import contextlib
import heapq
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import FrameType
from typing import Literal, Protocol

from pipelines.engine.execute import Outcome
from pipelines.engine.lease import LeaseWatch, is_dead
from pipelines.engine.plan import Expectations
from pipelines.engine.stage import Artifact, Resources, Stage
from pipelines.engine.store import Failure, Store

OnFailure = Literal["continue", "stop"]


class EventKind(StrEnum):
    PLANNED = "planned"  # is missing and will run
    CACHED = "cached"  # was in the store, or another launcher made it
    STARTED = "started"
    FINISHED = "finished"
    RETRYING = "retrying"  # an infrastructure fault; the message says which
    WAITING = "waiting"  # another launcher works on it
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


@dataclass
class Frontier:
    """The state of one run: which stages are done, which may run next, which never will. Reports every change."""

    store: Store
    stages: Sequence[Stage]
    on_event: OnEvent
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    was_interrupted: bool = False

    def __post_init__(self) -> None:
        self._clock = time.monotonic()
        self._ended: dict[EventKind, list[Stage]] = {kind: [] for kind in EventKind}
        self._failures: list[tuple[Stage, Failure]] = []
        self._open: dict[str, Stage] = {}
        self._rank: dict[str, int] = {}
        self._missing_inputs: dict[str, set[str]] = {}
        self._dependents: dict[str, list[Stage]] = {}
        self._ready: dict[Resources, list[tuple[int, str]]] = {}
        self._held: dict[str, Failure | None] = {}
        self._watch = LeaseWatch(self.store.lease_ttl_s)
        self.dead: dict[str, frozenset[str]] = {}

    @property
    def is_open(self) -> bool:
        """Whether any stage has not ended yet."""
        return bool(self._open)

    def open_stages(self) -> list[Stage]:
        return list(self._open.values())

    def start(self) -> None:
        """Look up the stages in the store and report each as cached or planned. What a cached one rests on is left."""
        for stage in self._needed():
            self._rank[stage.fingerprint] = len(self._rank)
            self._open[stage.fingerprint] = stage
            missing = {s.fingerprint for s in stage.inputs.values()} - self.artifacts.keys()
            self._missing_inputs[stage.fingerprint] = missing
            for fingerprint in missing:
                self._dependents.setdefault(fingerprint, []).append(stage)
        expect = Expectations(self.store)
        for stage in self._open.values():
            self._emit(EventKind.PLANNED, stage, expected_s=expect.seconds(stage))
            if not self._missing_inputs[stage.fingerprint]:
                self._make_ready(stage)

    def _needed(self) -> list[Stage]:
        """Return the missing stages, inputs first, and note and report the artifacts of the others on the way."""
        needed: dict[str, Stage] = {}
        stack = [(stage, False) for stage in reversed(self.stages)]
        while stack:
            stage, inputs_done = stack.pop()
            if inputs_done:
                needed.setdefault(stage.fingerprint, stage)
            elif stage.fingerprint not in needed and stage.fingerprint not in self.artifacts:
                if artifact := self.store.get(stage):
                    self._settle_artifact(stage, artifact, EventKind.CACHED)
                else:
                    stack.append((stage, True))
                    stack.extend((s, False) for s in reversed(list(stage.inputs.values())))
        return list(needed.values())

    def take(self, fits: Callable[[Resources], bool] = lambda _: True) -> Stage | None:
        """Return the first stage, in the order given, whose inputs are there and whose resources fit; None if none."""
        heaps = [heap for resources, heap in self._ready.items() if heap and fits(resources)]
        if not heaps:
            return None
        _, fingerprint = heapq.heappop(min(heaps))
        return self._open[fingerprint]

    def give_back(self, stage: Stage) -> None:
        """Let a stage that was taken be taken again."""
        self._make_ready(stage)

    def inputs(self, stage: Stage) -> dict[str, Artifact]:
        return {key: self.artifacts[needed.fingerprint] for key, needed in stage.inputs.items()}

    def report(self, kind: EventKind, stage: Stage, *, attempt: int, message: str = "") -> None:
        """Report a change that ends nothing (started, retrying)."""
        self._emit(kind, stage, attempt=attempt, message=message)

    def settle(self, stage: Stage, outcome: Outcome) -> None:
        """Note how an attempt ended."""
        if outcome.artifact:
            kind = EventKind.CACHED if outcome.duration_s is None else EventKind.FINISHED
            self._settle_artifact(stage, outcome.artifact, kind, outcome.duration_s)
        elif outcome.failure:
            self._settle_failure(stage, outcome.failure)
        elif outcome.held:
            self._held[stage.fingerprint] = self.store.failure(stage)
            holder = self.store.leases.holder(stage.fingerprint)
            by = holder.owner.describe() if holder and holder.owner else "another process"
            self._emit(EventKind.WAITING, stage, message=f"{by} works on it")
        else:
            self._open.pop(stage.fingerprint)
            self._ended[EventKind.INTERRUPTED].append(stage)
            self._emit(EventKind.INTERRUPTED, stage)

    def poll_held(self) -> None:
        """See which stages of other launchers have ended: take their artifact or failure, or make the stage ready."""
        for fingerprint, failure_before in list(self._held.items()):
            stage = self._open[fingerprint]
            if artifact := self.store.get(stage):
                del self._held[fingerprint]
                self._settle_artifact(stage, artifact, EventKind.CACHED)
                continue
            holder = self.store.leases.holder(fingerprint)
            if holder and not is_dead(holder):
                if not self._watch.stands_still(holder):
                    continue
                self.know_dead(stage, holder.token)
            del self._held[fingerprint]
            failure = self.store.failure(stage)
            if failure and failure != failure_before:
                self._settle_failure(stage, failure)
            else:
                self._make_ready(stage)

    def know_dead(self, stage: Stage, token: str) -> None:
        """Remember that the process behind this lease token has ended, wherever it ran."""
        self.dead[stage.fingerprint] = self.dead.get(stage.fingerprint, frozenset()) | {token}

    def summary(self) -> Summary:
        return Summary(
            artifacts=dict(self.artifacts),
            cached=tuple(self._ended[EventKind.CACHED]),
            finished=tuple(self._ended[EventKind.FINISHED]),
            failed=tuple(self._failures),
            blocked=tuple(self._ended[EventKind.BLOCKED]),
            interrupted=tuple(self._ended[EventKind.INTERRUPTED]),
            not_run=tuple(self._open.values()),
            was_interrupted=self.was_interrupted,
            elapsed_s=time.monotonic() - self._clock,
        )

    def _make_ready(self, stage: Stage) -> None:
        heap = self._ready.setdefault(stage.resources, [])
        heapq.heappush(heap, (self._rank[stage.fingerprint], stage.fingerprint))

    def _settle_artifact(
        self, stage: Stage, artifact: Artifact, kind: EventKind, duration_s: float | None = None
    ) -> None:
        self._open.pop(stage.fingerprint, None)
        self.artifacts[stage.fingerprint] = artifact
        self._ended[kind].append(stage)
        for dependent in self._dependents.pop(stage.fingerprint, ()):
            missing = self._missing_inputs[dependent.fingerprint]
            missing.discard(stage.fingerprint)
            if not missing and dependent.fingerprint in self._open:
                self._make_ready(dependent)
        self._emit(kind, stage, artifact=artifact, duration_s=duration_s)

    def _settle_failure(self, stage: Stage, failure: Failure) -> None:
        self._open.pop(stage.fingerprint)
        self._failures.append((stage, failure))
        self._emit(EventKind.FAILED, stage, failure=failure, attempt=failure.attempt)
        blocked = list(self._dependents.pop(stage.fingerprint, ()))
        while blocked:
            dependent = blocked.pop(0)
            if self._open.pop(dependent.fingerprint, None):
                self._ended[EventKind.BLOCKED].append(dependent)
                self._emit(EventKind.BLOCKED, dependent, message=f"rests on {stage.label}, which failed")
                blocked.extend(self._dependents.pop(dependent.fingerprint, ()))

    def _emit(self, kind: EventKind, stage: Stage, **details: object) -> None:
        self.on_event(Event(kind, stage, **details))  # type: ignore[arg-type]
