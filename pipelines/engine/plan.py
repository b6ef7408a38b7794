"""What a run would do, before it does anything: the state of each stage, its expected time, why it is not cached."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from pipelines.engine.fingerprint import Difference, diff
from pipelines.engine.lease import is_dead
from pipelines.engine.stage import Stage, walk
from pipelines.engine.store import Record, Store

DURATIONS_PER_STAGE_NAME = 200


class State(StrEnum):
    DONE = "done"
    MISSING = "missing"
    FAILED = "failed"
    LEASED = "leased"


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan; `expected_s` is None when no stage of its name has been recorded."""

    stage: Stage
    fingerprint: str
    state: State
    expected_s: float | None


def plan(store: Store, stages: Iterable[Stage]) -> list[PlannedStage]:
    """List the given stages and those that they rest on, inputs first, as the store knows them now.

    A missing stage is left out where only finished ones rest on it: nothing needs it again.
    """
    targets = list(stages)
    whole = list(walk(targets))
    done = {stage.fingerprint for stage in whole if store.has(stage)}
    needed = {stage.fingerprint for stage in targets}
    for stage in reversed(whole):  # what rests on a stage comes before it
        if stage.fingerprint in needed and stage.fingerprint not in done:
            needed.update(below.fingerprint for below in stage.inputs.values())
    leased = {fingerprint for fingerprint, holder in store.leases.holders().items() if not is_dead(holder)}
    expect = Expectations(store)
    planned = []
    for stage in whole:
        if stage.fingerprint in done:
            state = State.DONE
        elif stage.fingerprint not in needed:
            continue
        elif stage.fingerprint in leased:
            state = State.LEASED
        else:
            state = State.FAILED if store.failure(stage) else State.MISSING
        planned.append(PlannedStage(stage, stage.fingerprint, state, expect.seconds(stage)))
    return planned


class Expectations:
    """Expected durations: the median of recorded seconds per work unit of the stage name, times the stage's units."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._per_unit: dict[str, float | None] = {}

    def seconds(self, stage: Stage) -> float | None:
        if stage.name not in self._per_unit:
            rates = [
                record.provenance["process"]["duration_s"] / record.work_units
                for record in self._store.records(stage.name, limit=DURATIONS_PER_STAGE_NAME)
            ]
            self._per_unit[stage.name] = statistics.median(rates) if rates else None
        rate = self._per_unit[stage.name]
        return None if rate is None else rate * stage.work_units


def explain(store: Store, stage: Stage) -> tuple[Record | None, list[Difference]]:
    """Say why a stage is not in the store: its nearest record and the fields in which the two differ.

    An input that differs is followed into its own record, so that the changed field is named and not its fingerprint.
    No record: the stage name has never run. No difference: the stage is in the store.
    """
    nearest = store.nearest(stage)
    return nearest, [] if nearest is None else _differences(store, nearest, stage)


def _differences(store: Store, record: Record, stage: Stage) -> list[Difference]:
    found = []
    for difference in diff(record.payload, stage.payload):
        key = difference.path.removeprefix("inputs.")
        old, new = record.inputs.get(key), stage.inputs.get(key)
        is_input = difference.path.startswith("inputs.") and old and new
        old_record = store.record(old["stage"], old["fingerprint"]) if is_input and old else None
        if old_record and new:
            inner = _differences(store, old_record, new)
            found += [replace(d, path=f"{difference.path}.{d.path}") for d in inner]
        else:
            found.append(difference)
    return found
