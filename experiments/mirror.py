"""MLflow kept up with the store through every absence of its server: nothing lost, nothing doubled, no run stopped.

What cannot be written waits in memory and, as artifacts, failures and the list of what was made, in the store:

sync/<study and server>.made      the fingerprints of the stages that launches of this grid made, one a line
sync/<study and server>.writer    which launcher wrote last; another one reads the runs anew before it writes

`experiments.settled` tells whether there is anything to write, without MLflow.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import requests
from mlflow.exceptions import MlflowException

from experiments.alone import alone
from experiments.config import Config
from experiments.grid import Grid
from experiments.lookup import Unusable
from experiments.settled import sync_file, sync_key
from experiments.tracking import Tracker
from pipelines.engine import Event, EventKind, LeaseHeld, Store, hide_passwords
from pipelines.engine.fingerprint import fingerprint
from pipelines.engine.lease import LeaseWatch, this_owner

RETRY_AFTER_S = 15.0
# At most a sixth of a launcher's time goes into asking for a server that does not answer.
RETRY_SHARE = 5.0
UNREACHABLE = (MlflowException, requests.RequestException)


class Mirror:
    """Writes the ends of stages to MLflow, by one launcher of the store at a time; keeps what it cannot write yet."""

    def __init__(
        self, config: Config, grid: Grid, store: Store, *, resolved: str, command: str, tell: Callable[[str], None]
    ) -> None:
        self._config, self._grid, self._store = config, grid, store
        self._resolved, self._command, self._tell = resolved, command, tell
        self._key = sync_key(config, grid)
        self._owner = this_owner()
        self._tracker: Tracker | None = None
        self._events: dict[str, Event] = {}  # of this launch, by stage; all are gone through again with a new tracker
        self._waiting: dict[str, Event] = {}
        self._made: set[str] = set()
        self._watch = LeaseWatch(store.lease_ttl_s)
        self._retry_at = 0.0
        self._told = False
        self._written_before = 0

    @property
    def written(self) -> int:
        """Runs written to MLflow by this launch."""
        return self._written_before + (self._tracker.written if self._tracker else 0)

    def open(self) -> None:
        """Find or make the study run now, if the server is there; a local database exists afterwards.

        Raises ValueError, in one line, for a database or experiment that a person must see to first.
        """
        self._write(is_first=True)

    def note(self, event: Event) -> None:
        """Write the end of a stage, or keep it for a later event while the server is away."""
        is_end = event.artifact is not None or event.failure is not None
        if not is_end:
            return
        key = event.stage.fingerprint
        if event.kind == EventKind.FINISHED:
            self._made.add(key)
            with self._path("made").open("a") as file:
                file.write(key + "\n")
        self._events[key] = self._waiting[key] = event
        self._write()

    def finish(self, *, ok: bool) -> str | None:
        """Write what waits and end the runs; the study run's id, or None when the server is still away."""
        self._retry_at = 0.0
        self._write(at_end=ok)
        return self._tracker.study_run_id if self._tracker else None

    def digest_of_runs(self) -> str:
        """What a report rests on, as MLflow holds it now. Raises one of UNREACHABLE where it cannot be asked."""
        assert self._tracker
        return self._tracker.digest_of_runs()

    def reporting(self) -> AbstractContextManager[None]:
        """Hold the lease on the report's folder, once no other launcher makes the report."""
        name = f"report-{fingerprint(str(self._config.report_dir))[:16]}"
        return alone(self._store, name, this_owner(), LeaseWatch(self._store.lease_ttl_s), patient=True)

    def attach_report(self) -> bool:
        """Copy the report into the study run; False when the server is away."""
        try:
            if self._tracker:
                self._tracker.log_report(self._config.report_dir)
        except UNREACHABLE as error:
            self._lose(error)
        return self._tracker is not None

    def _write(self, *, is_first: bool = False, at_end: bool | None = None) -> None:
        """Write all that waits; `at_end` also sets the end of the runs, and waits for another launcher's writing."""
        if time.monotonic() < self._retry_at:
            return
        started = time.monotonic()
        try:
            with alone(self._store, f"mirror-{self._key}", self._owner, self._watch, patient=at_end is not None):
                if self._tracker is None or self._read("writer") != self._owner.token:
                    self._open_tracker()
                assert self._tracker
                for key, event in list(self._waiting.items()):
                    if event.failure:
                        self._tracker.record_failure(event.stage, event.failure)
                    elif event.artifact:
                        self._tracker.record(event.stage, event.artifact, cached=key not in self._made)
                    del self._waiting[key]
                if at_end is not None:
                    self._tracker.finish(ok=at_end)
        except LeaseHeld:
            return
        except (*UNREACHABLE, Unusable) as error:
            if is_first and isinstance(error, Unusable):
                raise
            took_s = time.monotonic() - started
            self._retry_at = time.monotonic() + max(RETRY_AFTER_S, RETRY_SHARE * took_s)
            self._lose(error)
            return
        if self._told:
            self._tell("the tracking server is back; what waited is written")
            self._told = False

    def _open_tracker(self) -> None:
        self._written_before = self.written
        self._tracker = None
        self._tracker = Tracker(self._config, self._grid, self._store, resolved=self._resolved, command=self._command)
        # Half-written runs and those of failures went when it opened; what is written already is passed over.
        self._waiting = dict(self._events)
        self._made.update(self._read("made").split())
        self._path("writer").write_text(self._owner.token)

    def _lose(self, error: Exception) -> None:
        self._written_before = self.written
        self._tracker = None
        if not self._told:
            reason = hide_passwords(" ".join(str(error).split()))
            what = "MLflow cannot be written to" if isinstance(error, Unusable) else "the tracking server is away"
            name = self._config.study.name
            self._tell(
                f"{what}, {len(self._waiting)} records wait in the store and the run goes on; it is asked again, else: "
                f"hope sync study={name}   ({reason if isinstance(error, Unusable) else reason[:200]})"
            )
            self._told = True

    def _path(self, part: str) -> Path:
        return sync_file(self._store, self._key, part)

    def _read(self, part: str) -> str:
        path = self._path(part)
        return path.read_text() if path.exists() else ""
