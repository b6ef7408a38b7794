"""One attempt at one stage, in whatever process a runner chose: lease, run, publish. Knows nothing of Ray."""

import contextlib
import json
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engine.lease import LeaseHeld, this_owner
from pipelines.engine.provenance import capture_process
from pipelines.engine.stage import Artifact, Resources, Run, Stage, StageConfig
from pipelines.engine.store import RECORD, Failure, Record, Store


@dataclass(frozen=True)
class Job:
    """What a worker is told about one attempt: the stage without the graph behind it.

    `token` names the attempt's lease; `dead` are the tokens of holders that the launcher knows to have ended.
    """

    name: str
    code_version: int
    run: Run
    config: StageConfig
    inputs: Mapping[str, Artifact]
    resources: Resources
    label: str
    resumable: bool
    work_units: float
    payload: dict[str, Any]
    fingerprint: str
    launch: dict[str, Any]
    token: str
    attempt: int = 1
    dead: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: exactly one of artifact, failure, held (another has the stage) or interrupted.

    `duration_s` is None for an artifact that was found, not made.
    """

    artifact: Artifact | None = None
    duration_s: float | None = None
    failure: Failure | None = None
    held: bool = False
    interrupted: bool = False


def make_job(
    stage: Stage, inputs: Mapping[str, Artifact], launch: dict[str, Any], token: str, attempt: int, dead: frozenset[str]
) -> Job:
    return Job(
        name=stage.name,
        code_version=stage.code_version,
        run=stage.run,
        config=stage.config,
        inputs=inputs,
        resources=stage.resources,
        label=stage.label,
        resumable=stage.resumable,
        work_units=stage.work_units,
        payload=stage.payload,
        fingerprint=stage.fingerprint,
        launch=launch,
        token=token,
        attempt=attempt,
        dead=dead,
    )


def execute(store: Store, job: Job) -> Outcome:
    """Run the job unless its artifact exists or another process holds it; an exception of it becomes a Failure."""
    if artifact := store.get_artifact(job.name, job.fingerprint):
        return Outcome(artifact=artifact)
    try:
        lease = store.leases.acquire(job.fingerprint, this_owner(job.token), job.dead)
    except LeaseHeld:
        return Outcome(held=True)
    with lease:
        # Its last holder may have published between the look above and the lease.
        if artifact := store.get_artifact(job.name, job.fingerprint):
            return Outcome(artifact=artifact)
        work = store.work_folder(job.name, job.fingerprint, job.token, resumable=job.resumable)
        started_at, clock = time.time(), time.monotonic()
        try:
            with _captured_output(store.log_path(job.name, job.fingerprint), job):
                result = _json_result(job, job.run(job.config, job.inputs, work))
                if (work / RECORD).exists():
                    raise ValueError(f"stage {job.name} wrote {RECORD}, which is the store's own: choose another name")
            duration_s = time.monotonic() - clock
            provenance = {**job.launch, "process": capture_process(started_at, duration_s)}
            artifact = store.publish(_record(job, result, provenance), work, lease)
            return Outcome(artifact=artifact, duration_s=duration_s)
        except KeyboardInterrupt:
            _discard(job, work)
            return Outcome(interrupted=True)
        except (Exception, SystemExit) as error:
            # Whoever took the lease over may have taken the folder too: what failed here says nothing about the stage.
            if lease.is_lost():
                return Outcome(held=True)
            _discard(job, work)
            failure = make_failure(store, job, "error", error, traceback.format_exc())
            store.write_failure(failure)
            return Outcome(failure=failure)


def make_failure(store: Store, job: Job, kind: str, error: BaseException, trace: str) -> Failure:
    message = next(iter(str(error).strip().splitlines()), "")
    return Failure(
        stage=job.name,
        fingerprint=job.fingerprint,
        payload=job.payload,
        label=job.label,
        kind=kind,
        error=f"{type(error).__name__}: {message}",
        traceback=trace,
        log=str(store.log_path(job.name, job.fingerprint).relative_to(store.root)),
        attempt=job.attempt,
        host=socket.gethostname(),
        failed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _discard(job: Job, work: Path) -> None:
    if not job.resumable and work.exists():
        shutil.rmtree(work)


def _json_result(job: Job, result: Any) -> dict[str, Any]:
    """Return the result as a later reader of record.json will see it."""
    if not isinstance(result, dict):
        raise TypeError(f"stage {job.name} returned a {type(result).__name__}: return a dict of JSON values")
    try:
        encoded: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"stage {job.name} returned what is not JSON ({error}): use finite numbers, strings, lists"
        ) from error
    return encoded


def _record(job: Job, result: dict[str, Any], provenance: dict[str, Any]) -> Record:
    return Record(
        stage=job.name,
        code_version=job.code_version,
        fingerprint=job.fingerprint,
        payload=job.payload,
        label=job.label,
        inputs={key: {"stage": a.stage, "fingerprint": a.fingerprint} for key, a in job.inputs.items()},
        work_units=job.work_units,
        attempt=job.attempt,
        result=result,
        provenance=provenance,
    )


@contextlib.contextmanager
def _captured_output(path: Path, job: Job) -> Iterator[None]:
    """Send this process's stdout and stderr, of Python and of libraries and children below it, to the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1) as log, contextlib.ExitStack() as stack:
        log.write(f"--- {job.label}, attempt {job.attempt}, process {os.getpid()} on {socket.gethostname()}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(log.fileno(), descriptor)
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        try:
            yield
        except BaseException:
            traceback.print_exc()
            raise
