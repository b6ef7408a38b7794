"""The store: one folder per artifact, complete or absent, beside the failures, leases, logs and unfinished work.

artifacts/<stage>/<fingerprint>/record.json    and the stage's files; appears by one rename
failures/<stage>/<fingerprint>.json            the last failure; goes when the artifact appears
logs/<stage>/<fingerprint>.log                 stdout and stderr of every attempt
work/<stage>/<fingerprint>.<token>/            an attempt's unfinished output
leases/<fingerprint>.<generation>              who works on what
"""

import heapq
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine.fingerprint import diff
from pipelines.engine.lease import HEARTBEAT_S, TTL_S, Lease, Leases
from pipelines.engine.stage import Artifact, Stage

FORMAT = 1
RECORD = "record.json"
URL = re.compile(r"[a-z][a-z0-9+.-]+:/")


class StoreError(ValueError):
    """The store cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """What record.json holds: the artifact, what it was identified by and where it comes from."""

    stage: str
    code_version: int
    fingerprint: str
    payload: dict[str, Any]
    label: str
    inputs: dict[str, dict[str, str]]
    work_units: float
    attempt: int
    result: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a stage has no artifact. `kind` is "error" (its own, deterministic) or "infrastructure"."""

    stage: str
    fingerprint: str
    payload: dict[str, Any]
    label: str
    kind: str
    error: str
    traceback: str
    log: str
    attempt: int
    host: str
    failed_at: str


class Store:
    """A folder of artifacts. Reading creates nothing; `prepare` makes the folder before the first write."""

    def __init__(self, root: Path | str, *, heartbeat_s: float = HEARTBEAT_S, lease_ttl_s: float = TTL_S) -> None:
        if URL.match(str(root)):
            raise StoreError(f"store {root}: object stores are not supported; give a local or shared folder")
        self.root = Path(root).absolute()
        self.leases = Leases(self.root / "leases", heartbeat_s)
        self.lease_ttl_s = lease_ttl_s
        self._check_format()

    def prepare(self) -> None:
        """Create the folder and its parts if they are missing. Raises StoreError when they cannot be written."""
        self._check_format()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / "store.json").exists():
                write_json(self.root / "store.json", {"format": FORMAT})
            for part in ("artifacts", "failures", "leases", "logs", "work"):
                (self.root / part).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"store {self.root} cannot be written ({error.strerror}): choose another folder") from None
        if not os.access(self.root / "artifacts", os.W_OK | os.X_OK):
            raise StoreError(f"store {self.root} cannot be written (no permission): choose another folder")

    def require(self) -> None:
        """Raise StoreError where this machine does not see the prepared store."""
        if not (self.root / "store.json").exists():
            raise StoreError(
                f"store {self.root} is not on {socket.gethostname()}: put it on a disk that all nodes share"
            )

    def _check_format(self) -> None:
        try:
            names = os.listdir(self.root)
            text = (self.root / "store.json").read_text() if "store.json" in names else None
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise StoreError(f"store {self.root} is not a folder: give a folder or a new path") from None
        except OSError as error:
            raise StoreError(f"store {self.root} cannot be read ({error.strerror}): choose another folder") from None
        if text is None:
            # A store that another launcher makes at this moment holds a hidden, half-written store.json at most.
            if visible := sorted(name for name in names if not name.startswith(".")):
                raise StoreError(
                    f"store {self.root} holds {visible[0]!r} but no store.json, so it is no store: give a new folder"
                )
            return
        try:
            found = int(json.loads(text)["format"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"store {self.root}: store.json is damaged: restore it as {{'format': {FORMAT}}}"
            ) from None
        if found > FORMAT:
            raise StoreError(f"store {self.root} has format {found}, this HoPE Lab reads {FORMAT}: update HoPE Lab")

    def artifact_path(self, name: str, fingerprint: str) -> Path:
        return self.root / "artifacts" / name / fingerprint

    def log_path(self, name: str, fingerprint: str) -> Path:
        return self.root / "logs" / name / f"{fingerprint}.log"

    def get(self, stage: Stage) -> Artifact | None:
        """Return the stage's artifact, or None when it has not been made."""
        return self.get_artifact(stage.name, stage.fingerprint)

    def has(self, stage: Stage) -> bool:
        """Tell whether the stage's artifact exists, without reading it."""
        return (self.artifact_path(stage.name, stage.fingerprint) / RECORD).exists()

    def get_artifact(self, name: str, fingerprint: str) -> Artifact | None:
        record = self.record(name, fingerprint)
        return self._artifact(record) if record else None

    def record(self, name: str, fingerprint: str) -> Record | None:
        """Return the whole record of an artifact, or None."""
        data = _read_json(self.artifact_path(name, fingerprint) / RECORD)
        return Record(**data) if data else None

    def records(self, name: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the records of one stage name, newest first."""
        try:
            entries = [(entry.stat().st_mtime_ns, entry.name) for entry in os.scandir(self.root / "artifacts" / name)]
        except FileNotFoundError:
            return
        for _, fingerprint in sorted(entries, reverse=True) if limit is None else heapq.nlargest(limit, entries):
            if record := self.record(name, fingerprint):
                yield record

    def nearest(self, stage: Stage) -> Record | None:
        """Return the record of the same stage name with the fewest differing fields, of several the newest."""
        return min(self.records(stage.name), key=lambda record: len(diff(record.payload, stage.payload)), default=None)

    def work_folder(self, name: str, fingerprint: str, token: str, *, resumable: bool) -> Path:
        """Return the attempt's own empty folder, or, if resumable, the newest earlier attempt's renamed to its own.

        The rename takes the folder from under a holder that lost its lease but still runs elsewhere.
        """
        parent = self.root / "work" / name
        parent.mkdir(parents=True, exist_ok=True)
        own = parent / f"{fingerprint}.{token}"
        left = [parent / name for name in os.listdir(parent) if name.startswith(f"{fingerprint}.")]
        earlier = sorted(left, key=lambda path: path.stat().st_mtime_ns)
        if resumable and earlier:
            earlier.pop().rename(own)
        for path in earlier:
            shutil.rmtree(path)
        own.mkdir(exist_ok=True)
        return own

    def publish(self, record: Record, work: Path, lease: Lease) -> Artifact:
        """Make the attempt's folder the artifact; if another published first, its artifact stays and is returned.

        Raises LeaseLost when the lease was taken over.
        """
        write_json(work / RECORD, vars(record))
        target = self.artifact_path(record.stage, record.fingerprint)
        target.parent.mkdir(parents=True, exist_ok=True)
        lease.check()
        try:
            work.rename(target)
        except OSError:
            if not (target / RECORD).exists():
                raise
            shutil.rmtree(work)
            record = Record(**_read_json(target / RECORD))
        self.clear_failure(record.stage, record.fingerprint)
        return self._artifact(record)

    def _artifact(self, record: Record) -> Artifact:
        path = self.artifact_path(record.stage, record.fingerprint)
        return Artifact(record.stage, record.fingerprint, path, record.result)

    def write_failure(self, failure: Failure) -> None:
        path = self._failure_path(failure.stage, failure.fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, vars(failure))

    def failure(self, stage: Stage) -> Failure | None:
        """Return how the stage failed when it last ended without an artifact, or None."""
        data = _read_json(self._failure_path(stage.name, stage.fingerprint))
        return Failure(**data) if data else None

    def failures(self) -> list[Failure]:
        """Return every failure in the store, in the order of stage names and fingerprints."""
        paths = sorted((self.root / "failures").glob("*/*.json"))
        return [Failure(**data) for path in paths if (data := _read_json(path))]

    def clear_failure(self, name: str, fingerprint: str) -> None:
        self._failure_path(name, fingerprint).unlink(missing_ok=True)

    def _failure_path(self, name: str, fingerprint: str) -> Path:
        return self.root / "failures" / name / f"{fingerprint}.json"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write the file so that whenever the process is killed it is complete or absent."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(data, indent=1, allow_nan=False))
    temporary.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): remove {path.parent.name}/{path.name} to redo it") from None
