"""One run over a started Ray: submits stages as their inputs and resources allow, retries, and cleans up at the end."""

import heapq
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.engine.execute import Job, Outcome, execute, make_failure, make_job
from pipelines.engine.frontier import Frontier
from pipelines.engine.provenance import capture_launch
from pipelines.engine.runner import EventKind, OnFailure, ignore
from pipelines.engine.stage import Resources, Stage, Workers
from pipelines.engine.store import Store

MAX_BACKOFF_S = 60.0
# Else a task that asked for no GPU sees them all (https://github.com/ray-project/ray/issues/54868). What a stage
# starts, Ray Train's workers and Ray Data's, inherits this, and sees the GPUs that it asks for itself.
HIDE_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
SLACK = 1e-6  # sums of fractions of a GPU


@dataclass(frozen=True)
class Policy:
    """When to stop, retry and poll; see RayRunner for the meaning of each."""

    on_failure: OnFailure
    max_retries: int
    backoff_s: float
    max_in_flight: int | None
    grace_s: float
    poll_s: float
    seed: int | None


class StopFlag:
    """Set by the first signal; `at_once` by the second. Plain fields, as a signal handler may not take a lock."""

    def __init__(self) -> None:
        self.is_set = False
        self.at_once = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.at_once = self.is_set
        self.is_set = True


def run_job(root: Path, heartbeat_s: float, job: Job) -> Outcome:
    """Run one job in a Ray worker."""
    # ray.cancel interrupts the main thread as Ctrl-C would; where the launcher ignores SIGINT (a background job of
    # a shell script) has no handler for it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    limit_threads(max(1, int(job.resources.num_cpus)))
    store = Store(root, heartbeat_s=heartbeat_s)
    store.require()
    return execute(store, job)


def limit_threads(count: int) -> None:
    """Let numeric libraries use `count` threads; torch, if an earlier stage imported it, must be told itself."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def check_nodes(stages: Sequence[Stage]) -> None:
    """Raise ValueError in one line if the nodes of the cluster that this process has joined cannot hold each stage.

    Of a stage that starts workers they must hold all of these at once, each on one node.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {Workers(1, stage.resources): stage for stage in stages}
    wanted |= {stage.workers: stage for stage in stages if stage.workers}
    for workers, stage in wanted.items():
        needs = _ray_resources(workers.each)
        if sum(_room(needs, node, most=workers.count) for node in nodes) < workers.count:
            times = f"{workers.count} times {needs} at once" if workers.count > 1 else f"{needs}"
            has = "; ".join(str({name: node.get(name, 0) for name in needs}) for node in nodes)
            raise ValueError(f"stage {stage.label} needs {times} but the nodes have {has}: lower what it asks for")


class Dispatch:
    """Drives a frontier to its end. Afterwards no task runs and no lease is held, however it ended.

    `joined`: Ray was not started by this process, so that its workers must be told HIDE_GPUS.
    """

    def __init__(self, store: Store, frontier: Frontier, policy: Policy, stop: StopFlag, *, joined: bool) -> None:
        import ray

        self._ray = ray
        self._environment = HIDE_GPUS if joined else {}
        self._store = store
        self._frontier = frontier
        self._policy = policy
        self._stop = stop
        self._launch = capture_launch(policy.seed)
        self._in_flight: dict[Any, tuple[Stage, Job]] = {}
        self._attempts: Counter[str] = Counter()
        self._delayed: list[tuple[float, str, Stage]] = []
        self._stuck: set[str] = set()
        self._used: Counter[str] = Counter()
        self._total: Mapping[str, float] = ray.cluster_resources()
        self._on_cpu = ray.remote(max_retries=0)(run_job)
        # A GPU worker ends with its stage: staying, it would keep memory on the device that the next stage needs.
        self._on_gpu = ray.remote(max_retries=0, num_gpus=1, max_calls=1)(run_job)

    def run(self) -> None:
        try:
            self._loop()
        except BaseException:
            self._frontier.on_event = ignore  # it may be what raised
            raise
        finally:
            self._end_all()

    def _loop(self) -> None:
        frontier, poll_s = self._frontier, self._policy.poll_s
        polled_at = time.monotonic()
        while frontier.is_open and not self._stop.is_set:
            while (stage := frontier.take(self._fits, self._busy_groups())) is not None:
                self._submit(stage)
            if not self._in_flight:
                time.sleep(poll_s)
            for ref in self._ended(poll_s):
                outcome = self._collect(ref)
                if outcome and outcome.failure and self._policy.on_failure == "stop":
                    return
            if time.monotonic() - polled_at >= poll_s:
                polled_at = time.monotonic()
                self._total = self._ray.cluster_resources()
                self._report_stuck()
                frontier.poll_held()
                while self._delayed and self._delayed[0][0] <= polled_at:
                    frontier.give_back(heapq.heappop(self._delayed)[2])

    def _fits(self, resources: Resources) -> bool:
        if self._policy.max_in_flight is not None:
            return len(self._in_flight) < self._policy.max_in_flight
        needs = _ray_resources(resources)
        return _within({name: self._used[name] + amount for name, amount in needs.items()}, self._total)

    def _busy_groups(self) -> set[str | None]:
        return {stage.process_group for stage, _ in self._in_flight.values()} - {None}

    def _report_stuck(self) -> None:
        """Say once of each stage that it waits for a node that left, whether Ray has it already or not."""
        if self._policy.max_in_flight is not None:
            return
        for stage in (*self._frontier.next_of_each_size(), *(stage for stage, _ in self._in_flight.values())):
            needs = _ray_resources(stage.resources)
            if stage.fingerprint not in self._stuck and not _within(needs, self._total):
                self._stuck.add(stage.fingerprint)
                self._frontier.report(EventKind.WAITING, stage, message=f"no node with {needs} is there now")

    def _submit(self, stage: Stage) -> None:
        self._attempts[stage.fingerprint] += 1
        attempt = self._attempts[stage.fingerprint]
        inputs, dead = self._frontier.inputs(stage), self._frontier.dead(stage)
        job = make_job(stage, inputs, self._launch, uuid.uuid4().hex, attempt, dead)
        needs = _ray_resources(stage.resources)
        options: dict[str, Any] = {"name": stage.label, "num_cpus": needs["CPU"]}
        if "GPU" in needs:
            options["num_gpus"] = needs["GPU"]
        if "memory" in needs:
            options["memory"] = needs["memory"]
        environment = dict(self._environment)
        if stage.process_group is not None:  # Ray never runs tasks of two runtime environments in one worker process
            environment["HOPE_PROCESS_GROUP"] = stage.process_group
        if environment:
            options["runtime_env"] = {"env_vars": environment}
        remote = self._on_gpu if "GPU" in needs else self._on_cpu
        ref = remote.options(**options).remote(self._store.root, self._store.leases.heartbeat_s, job)
        self._in_flight[ref] = stage, job
        self._used.update(needs)
        self._frontier.report(EventKind.STARTED, stage, attempt=attempt)

    def _ended(self, timeout_s: float) -> list[Any]:
        """Wait for the first task to end and return all that have."""
        if not self._in_flight:
            return []
        ended, others = self._ray.wait(list(self._in_flight), num_returns=1, timeout=timeout_s)
        if ended and others:
            ended += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(ended)

    def _collect(self, ref: Any) -> Outcome | None:
        """Settle an ended task; None when it will be tried again."""
        stage, job = self._pop(ref)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(ref)
        except errors.TaskCancelledError:
            outcome = Outcome(interrupted=True)
        except errors.RayTaskError as error:
            # The stage's own exception comes as a Failure: this is a job that the worker could not start.
            outcome = self._fail(job, "error", error.cause or error, str(error))
        except errors.RayError as error:
            if artifact := self._store.get(stage):
                outcome = Outcome(artifact=artifact)  # the worker died after it published
            elif job.attempt <= self._policy.max_retries:
                self._retry(stage, job, error)
                return None
            else:
                outcome = self._fail(job, "infrastructure", error, str(error))
        self._frontier.settle(stage, outcome)
        return outcome

    def _pop(self, ref: Any) -> tuple[Stage, Job]:
        stage, job = self._in_flight.pop(ref)
        self._used.subtract(_ray_resources(stage.resources))
        return stage, job

    def _retry(self, stage: Stage, job: Job, error: Exception) -> None:
        self._frontier.know_dead(stage, job.token)
        delay_s = min(MAX_BACKOFF_S, self._policy.backoff_s * 2 ** (job.attempt - 1))
        heapq.heappush(self._delayed, (time.monotonic() + delay_s, stage.fingerprint, stage))
        message = f"{type(error).__name__}, tried again in {delay_s:g} s"
        self._frontier.report(EventKind.RETRYING, stage, attempt=job.attempt, message=message)

    def _fail(self, job: Job, kind: str, error: BaseException, trace: str) -> Outcome:
        failure = make_failure(self._store, job, kind, error, trace)
        self._store.write_failure(failure)
        self._store.leases.discard(job.fingerprint, job.token)
        return Outcome(failure=failure)

    def _end_all(self) -> None:
        """Cancel what runs, kill what has not ended after the grace time, and free the leases of both."""
        jobs = [job for _, job in self._in_flight.values()]
        deadline = time.monotonic() + self._policy.grace_s
        for ref in self._in_flight:
            self._ray.cancel(ref)
        killed = False
        while self._in_flight:
            for ref in self._ended(timeout_s=0.1):
                stage, _ = self._pop(ref)
                try:
                    outcome: Outcome = self._ray.get(ref)
                except self._ray.exceptions.RayError:
                    outcome = Outcome(interrupted=True)
                self._frontier.settle(stage, outcome)
            if not killed and (self._stop.at_once or time.monotonic() > deadline):
                killed = True
                for ref in self._in_flight:
                    self._ray.cancel(ref, force=True)
        for job in jobs:
            self._store.leases.discard(job.fingerprint, job.token)


def _ray_resources(resources: Resources) -> dict[str, float]:
    needs: dict[str, float] = {"CPU": resources.num_cpus}
    if resources.num_gpus:
        needs["GPU"] = resources.num_gpus
    if resources.memory_gib is not None:
        needs["memory"] = int(resources.memory_gib * 2**30)
    return needs


def _within(needs: Mapping[str, float], has: Mapping[str, float]) -> bool:
    return all(amount <= has.get(name, 0) + SLACK for name, amount in needs.items())


def _room(needs: Mapping[str, float], has: Mapping[str, float], *, most: int) -> int:
    """How many processes of these needs a node holds at once, `most` at most."""
    return min([most, *(int((has.get(name, 0) + SLACK) / amount) for name, amount in needs.items() if amount)])
