"""A runner that runs one stage after the other in the calling process."""

import time
import uuid
from collections.abc import Sequence
from types import FrameType

from pipelines.engine.execute import execute, make_job
from pipelines.engine.frontier import Frontier
from pipelines.engine.provenance import capture_launch
from pipelines.engine.runner import EventKind, OnEvent, OnFailure, Summary, ignore, signals_call
from pipelines.engine.stage import Stage
from pipelines.engine.store import Store


class LocalRunner:
    """Runs stages in process. While a stage runs, stdout and stderr of the process go to its log."""

    def __init__(
        self, store: Store, *, on_failure: OnFailure = "continue", seed: int | None = None, poll_s: float = 0.5
    ) -> None:
        self.store = store
        self.on_failure = on_failure
        self.seed = seed
        self.poll_s = poll_s

    def run(self, stages: Sequence[Stage], on_event: OnEvent = ignore) -> Summary:
        """Run what is missing. Ctrl-C and SIGTERM end the current stage as interrupted and then the run."""
        frontier = Frontier(self.store, stages, on_event)
        with signals_call(_interrupt):
            try:
                frontier.start()
                if frontier.is_open:
                    self.store.prepare()
                    self._drive(frontier)
            except KeyboardInterrupt:
                frontier.was_interrupted = True
        return frontier.summary()

    def _drive(self, frontier: Frontier) -> None:
        launch = capture_launch(self.seed)
        while frontier.is_open:
            stage = frontier.take()
            if stage is None:
                time.sleep(self.poll_s)
                frontier.poll_held()
                continue
            job = make_job(
                stage, frontier.inputs(stage), launch, uuid.uuid4().hex, attempt=1, dead=frontier.dead(stage)
            )
            frontier.report(EventKind.STARTED, stage, attempt=1)
            outcome = execute(self.store, job)
            frontier.settle(stage, outcome)
            if outcome.interrupted:
                frontier.was_interrupted = True
                return
            if outcome.failure and self.on_failure == "stop":
                return


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
