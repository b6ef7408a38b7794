"""Live progress of a run: stages done, running and failed, and the time left; plain lines when not a terminal."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.decode_progress import read_progress
from pipelines.engine import Event, EventKind, PlannedStage, Stage, State
from pipelines.preprocess import PreprocessPlacement

ENDED = {EventKind.FINISHED, EventKind.FAILED, EventKind.BLOCKED, EventKind.INTERRUPTED, EventKind.CACHED}


class Progress:
    """Turns the runner's events into a status line. Use as a context manager around the run."""

    def __init__(self, planned: Sequence[PlannedStage], *, slots: int, console: Console) -> None:
        self._console = console
        self._slots = slots
        self._open = {item.fingerprint: item for item in planned if item.state != State.DONE}
        self._total = len(self._open)
        self._running: dict[str, tuple[Stage, float]] = {}
        self._counts: dict[EventKind, int] = defaultdict(int)
        self._seconds: dict[str, list[float]] = defaultdict(list)  # per work unit, by stage name
        self._started = time.monotonic()
        self._live = (
            Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._line)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def on_event(self, event: Event) -> None:
        key, now = event.stage.fingerprint, time.monotonic()
        if event.kind == EventKind.STARTED:
            self._running[key] = (event.stage, now)
        if event.kind in ENDED:
            self._running.pop(key, None)
            if self._open.pop(key, None) is None:
                return
            self._counts[event.kind] += 1
            if event.kind == EventKind.FINISHED and event.duration_s is not None:
                self._seconds[event.stage.name].append(event.duration_s / event.stage.work_units)
            took = f" {event.duration_s:.1f} s" if event.duration_s is not None else ""
            why = f": {event.failure.error.splitlines()[0]}" if event.failure else ""
            self._say(f"{event.kind} {event.stage.label}{took}{why}{_set_apart(event)}")
        elif event.kind in (EventKind.RETRYING, EventKind.WAITING):
            self._say(f"{event.kind} {event.stage.label}: {event.message}")

    def _line(self) -> Text:
        """Asked for by rich's own thread twice a second."""
        return Text(self.status(), no_wrap=True, overflow="ellipsis")

    def status(self) -> str:
        """One line: how far the run is and how long it will take."""
        done = self._total - len(self._open)
        failed = self._counts[EventKind.FAILED] + self._counts[EventKind.BLOCKED]
        left = self.remaining_s()
        eta = "estimating the time left" if left is None else f"about {duration(left)} left"
        running = ", ".join(sorted(doing(stage) for stage, _ in list(self._running.values())))
        return f"[{done}/{self._total}] {len(self._running)} running, {failed} failed, {eta}" + (
            f" ({running})" if running and self._live else ""
        )

    def remaining_s(self) -> float | None:
        """Expected seconds until the end: from this run's durations of like stages, else from recorded ones."""
        left = 0.0
        for key, item in list(self._open.items()):
            seen = self._seconds[item.stage.name]
            expected = sum(seen) / len(seen) * item.stage.work_units if seen else item.expected_s
            if expected is None:
                return None
            if running := self._running.get(key):
                expected = max(0.0, expected - (time.monotonic() - running[1]))
            left += expected
        return left / self._slots

    def _say(self, line: str) -> None:
        self._console.print(
            f"{self.status()} | {line}" if not self._live else line, markup=False, highlight=False, soft_wrap=True
        )


def doing(stage: Stage) -> str:
    """A running stage's label; while it decodes, with a bar, the files done and the time left."""
    state = read_progress(stage.config) if isinstance(stage.config.placement, PreprocessPlacement) else None
    if state is None:
        return stage.label
    share = state["done"] / max(1, state["total"])
    left = "" if state["eta_s"] is None else f", about {duration(state['eta_s'])} left"
    return f"{stage.label} {'#' * int(20 * share):.<20} {state['done']} of {state['total']}{left}"


def _set_apart(event: Event) -> str:
    """What a data set lost, as the end of a line."""
    lost = event.artifact.result.get("quarantined_records") if event.artifact else None
    return f": {lost} of {event.artifact.result['records']} records set apart" if lost and event.artifact else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3.5 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counts(planned: Sequence[PlannedStage]) -> Mapping[State, int]:
    """How many stages are in each state."""
    found: dict[State, int] = dict.fromkeys(State, 0)
    for item in planned:
        found[item.state] += 1
    return found
