"""Which stages of a run are done, which may run next, and which never will."""

import heapq
import time
from collections.abc import Callable, Collection, Sequence

from pipelines.engine.execute import Outcome
from pipelines.engine.lease import LeaseWatch, is_dead
from pipelines.engine.plan import Expectations
from pipelines.engine.runner import Event, EventKind, OnEvent, Summary
from pipelines.engine.stage import Artifact, Resources, Stage
from pipelines.engine.store import Failure, Store


class Frontier:
    """The state of one run, in the launching process; every change of a stage is reported to `on_event`."""

    def __init__(self, store: Store, stages: Sequence[Stage], on_event: OnEvent) -> None:
        self.on_event = on_event
        self.was_interrupted = False
        self._store = store
        self._targets = stages
        self._clock = time.monotonic()
        self._artifacts: dict[str, Artifact] = {}
        self._ended: dict[EventKind, list[Stage]] = {kind: [] for kind in EventKind}
        self._failures: list[tuple[Stage, Failure]] = []
        self._open: dict[str, Stage] = {}
        self._rank: dict[str, int] = {}
        self._missing_inputs: dict[str, set[str]] = {}
        self._dependents: dict[str, list[Stage]] = {}
        self._ready: dict[tuple[Resources, str | None], list[tuple[int, str]]] = {}  # heaps, none of them empty
        self._held: dict[str, Failure | None] = {}
        self._watch = LeaseWatch(self._store.lease_ttl_s)
        self._dead: dict[str, frozenset[str]] = {}

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
            missing = {s.fingerprint for s in stage.inputs.values()} - self._artifacts.keys()
            self._missing_inputs[stage.fingerprint] = missing
            for fingerprint in missing:
                self._dependents.setdefault(fingerprint, []).append(stage)
        expect = Expectations(self._store)
        for stage in self._open.values():
            self._emit(EventKind.PLANNED, stage, expected_s=expect.seconds(stage))
            if not self._missing_inputs[stage.fingerprint]:
                self.give_back(stage)

    def _needed(self) -> list[Stage]:
        """Return the missing stages, inputs first, and note and report the artifacts of the others on the way."""
        needed: dict[str, Stage] = {}
        stack = [(stage, False) for stage in reversed(self._targets)]
        while stack:
            stage, inputs_done = stack.pop()
            if inputs_done:
                needed.setdefault(stage.fingerprint, stage)
            elif stage.fingerprint not in needed and stage.fingerprint not in self._artifacts:
                if artifact := self._store.get(stage):
                    self._settle_artifact(stage, artifact, EventKind.CACHED)
                else:
                    stack.append((stage, True))
                    stack.extend((s, False) for s in reversed(list(stage.inputs.values())))
        return list(needed.values())

    def take(
        self, fits: Callable[[Resources], bool] = lambda _: True, busy: Collection[str | None] = ()
    ) -> Stage | None:
        """Return the first stage, in the order given, whose inputs are there and whose resources fit; None if none.

        Stages of the `busy` process groups come last: each would start one more process of its group, and import
        everything again, while another group's may wait for work.
        """
        fitting = {resources for resources, _ in self._ready if fits(resources)}
        kinds = [kind for kind in self._ready if kind[0] in fitting]
        if not kinds:
            return None
        kind = min(kinds, key=lambda kind: (kind[1] in busy, self._ready[kind][0]))
        _, fingerprint = heapq.heappop(self._ready[kind])
        if not self._ready[kind]:
            del self._ready[kind]
        return self._open[fingerprint]

    def next_of_each_size(self) -> list[Stage]:
        """Return, for each kind of resources, the stage that comes first."""
        first: dict[Resources, tuple[int, str]] = {}
        for (resources, _), heap in self._ready.items():
            first[resources] = min(heap[0], first.get(resources, heap[0]))
        return [self._open[fingerprint] for _, fingerprint in first.values()]

    def give_back(self, stage: Stage) -> None:
        """Let a stage be taken, for the first time or again."""
        heap = self._ready.setdefault((stage.resources, stage.process_group), [])
        heapq.heappush(heap, (self._rank[stage.fingerprint], stage.fingerprint))

    def inputs(self, stage: Stage) -> dict[str, Artifact]:
        return {key: self._artifacts[needed.fingerprint] for key, needed in stage.inputs.items()}

    def report(self, kind: EventKind, stage: Stage, *, attempt: int = 1, message: str = "") -> None:
        """Report a change that ends nothing (started, retrying, waiting)."""
        self._emit(kind, stage, attempt=attempt, message=message)

    def settle(self, stage: Stage, outcome: Outcome) -> None:
        """Note how an attempt ended."""
        if outcome.artifact:
            kind = EventKind.CACHED if outcome.duration_s is None else EventKind.FINISHED
            self._settle_artifact(stage, outcome.artifact, kind, outcome.duration_s)
        elif outcome.failure:
            self._settle_failure(stage, outcome.failure)
        elif outcome.held:
            self._held[stage.fingerprint] = self._store.failure(stage)
            holder = self._store.leases.holder(stage.fingerprint)
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
            if artifact := self._store.get(stage):
                del self._held[fingerprint]
                self._settle_artifact(stage, artifact, EventKind.CACHED)
                continue
            holder = self._store.leases.holder(fingerprint)
            if holder and not is_dead(holder):
                if not self._watch.stands_still(holder):
                    continue
                self.know_dead(stage, holder.token)
            del self._held[fingerprint]
            failure = self._store.failure(stage)
            if failure and failure != failure_before:
                self._settle_failure(stage, failure)
            else:
                self.give_back(stage)

    def know_dead(self, stage: Stage, token: str) -> None:
        """Remember that the process behind this lease token has ended, wherever it ran."""
        self._dead[stage.fingerprint] = self.dead(stage) | {token}

    def dead(self, stage: Stage) -> frozenset[str]:
        """Return the lease tokens of this stage whose processes are known to have ended."""
        return self._dead.get(stage.fingerprint, frozenset())

    def summary(self) -> Summary:
        return Summary(
            artifacts=dict(self._artifacts),
            cached=tuple(self._ended[EventKind.CACHED]),
            finished=tuple(self._ended[EventKind.FINISHED]),
            failed=tuple(self._failures),
            blocked=tuple(self._ended[EventKind.BLOCKED]),
            interrupted=tuple(self._ended[EventKind.INTERRUPTED]),
            not_run=tuple(self._open.values()),
            was_interrupted=self.was_interrupted,
            elapsed_s=time.monotonic() - self._clock,
        )

    def _settle_artifact(
        self, stage: Stage, artifact: Artifact, kind: EventKind, duration_s: float | None = None
    ) -> None:
        self._open.pop(stage.fingerprint, None)
        self._artifacts[stage.fingerprint] = artifact
        self._ended[kind].append(stage)
        for dependent in self._dependents.pop(stage.fingerprint, ()):
            missing = self._missing_inputs[dependent.fingerprint]
            missing.discard(stage.fingerprint)
            if not missing and dependent.fingerprint in self._open:
                self.give_back(dependent)
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
