"""A runner that runs each stage as one Ray task. Ray itself is imported and started when the first stage must run."""

import heapq
import os
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pipelines.engine.execute import Job, Outcome, execute, make_failure, make_job
from pipelines.engine.provenance import capture_launch
from pipelines.engine.runner import EventKind, Frontier, OnEvent, OnFailure, Summary, ignore, signals_call
from pipelines.engine.stage import Resources, Stage
from pipelines.engine.store import Store

MAX_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Attempt:
    """A submitted task."""

    stage: Stage
    job: Job


class RayRunner:
    """Runs stages as Ray tasks, as many at once as the cluster's resources hold.

    A stage whose worker dies (killed, out of memory, its node lost) is tried again `max_retries` times, first after
    `backoff_s` and then after twice as long each time; an exception of the stage itself is not retried. At the first
    failure `on_failure="stop"` interrupts what runs. Ray stays up between calls of `run` until `close` or the end of a
    `with` block.

    `address` joins a running cluster, where `max_in_flight` tasks are kept submitted if it is given, so that an
    autoscaler sees the demand. Without it Ray starts on this machine with `num_cpus` and `num_gpus` (None: all),
    reachable with a token of this launch only, its dashboard off or on the loopback interface.
    """

    def __init__(
        self,
        store: Store,
        *,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        address: str | None = None,
        on_failure: OnFailure = "continue",
        max_retries: int = 3,
        backoff_s: float = 1.0,
        max_in_flight: int | None = None,
        grace_s: float = 10.0,
        poll_s: float = 0.5,
        dashboard: bool = False,
        seed: int | None = None,
    ) -> None:
        self.store = store
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.address = address
        self.on_failure = on_failure
        self.max_retries = max_retries
        self.backoff_s = backoff_s
        self.max_in_flight = max_in_flight
        self.grace_s = grace_s
        self.poll_s = poll_s
        self.dashboard = dashboard
        self.seed = seed
        self._started_ray = False

    def run(self, stages: Sequence[Stage], on_event: OnEvent = ignore) -> Summary:
        """Run what is missing. Ctrl-C and SIGTERM end what runs as interrupted; a second one does not wait for it.

        Raises ValueError when a stage needs more than any node of the cluster has.
        """
        frontier = Frontier(self.store, stages, on_event)
        stop = StopFlag()
        with signals_call(stop.on_signal) as reinstall:
            frontier.start()
            if frontier.is_open and not stop.is_set():
                self.store.prepare()
                self.connect()
                reinstall()
                _Drive(self, frontier, stop).run()
        frontier.was_interrupted = stop.is_set()
        return frontier.summary()

    def close(self) -> None:
        """Shut down the Ray that this runner started."""
        if self._started_ray:
            import ray

            ray.shutdown()
            self._started_ray = False

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def connect(self) -> None:
        """Start or join Ray now, unless it is up; `run` does so when a stage must run."""
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            return
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        local: dict[str, Any] = {}
        if self.address is None:
            # Ray would otherwise leave a token file in the home directory and change how later clusters start.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            local = {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "include_dashboard": self.dashboard,
                "dashboard_host": "127.0.0.1",
            }
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **local)
        self._started_ray = True


class StopFlag:
    """Set by the first signal; `hard` by the second."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.hard = False

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.hard = self.is_set()
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> None:
        self._event.wait(timeout_s)


def run_job(root: Path, heartbeat_s: float, job: Job) -> Outcome:
    """Run one job in a Ray worker."""
    limit_threads(max(1, int(job.resources.num_cpus)))
    store = Store(root, heartbeat_s=heartbeat_s)
    store.require()
    return execute(store, job)


def limit_threads(count: int) -> None:
    """Let numeric libraries use `count` threads, those already imported by an earlier stage included."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


class _Drive:
    """One run over a started Ray: submits, waits, retries, and at the end leaves no task and no lease behind."""

    def __init__(self, runner: RayRunner, frontier: Frontier, stop: StopFlag) -> None:
        import ray

        self._ray = ray
        self._runner = runner
        self._frontier = frontier
        self._stop = stop
        self._launch = capture_launch(runner.seed)
        self._in_flight: dict[Any, Attempt] = {}
        self._attempts: dict[str, int] = {}
        self._delayed: list[tuple[float, str, Stage]] = []
        self._used = Resources(0, 0, 0)
        self._on_cpu = ray.remote(max_retries=0)(run_job)
        # A worker that stays would keep its memory on the device while another stage needs it.
        self._on_gpu = ray.remote(max_retries=0, num_gpus=1, max_calls=1)(run_job)

    def run(self) -> None:
        self._total = self._cluster_total()
        self._check_feasible()
        try:
            self._loop()
        except BaseException:
            self._frontier.on_event = ignore  # it may be what raised
            raise
        finally:
            self._end_all()

    def _loop(self) -> None:
        frontier, polled_at = self._frontier, time.monotonic()
        while frontier.is_open and not self._stop.is_set():
            while (stage := frontier.take(self._fits)) is not None:
                self._submit(stage)
            if self._in_flight:
                for ref in self._ready(self._runner.poll_s):
                    outcome = self._collect(ref)
                    if outcome and outcome.failure and self._runner.on_failure == "stop":
                        return
            else:
                self._stop.wait(self._runner.poll_s)
            if time.monotonic() - polled_at >= self._runner.poll_s:
                polled_at = time.monotonic()
                self._total = self._cluster_total()
                frontier.poll_held()
                while self._delayed and self._delayed[0][0] <= polled_at:
                    frontier.give_back(heapq.heappop(self._delayed)[2])

    def _ready(self, timeout_s: float) -> list[Any]:
        refs = list(self._in_flight)
        done, rest = self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        more = self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if done and rest else []
        return [*done, *more]

    def _submit(self, stage: Stage) -> None:
        attempt = self._attempts.get(stage.fingerprint, 0) + 1
        self._attempts[stage.fingerprint] = attempt
        dead = self._frontier.dead.get(stage.fingerprint, frozenset())
        job = make_job(stage, self._frontier.inputs(stage), self._launch, uuid.uuid4().hex, attempt, dead)
        needs = stage.resources
        options: dict[str, Any] = {"num_cpus": needs.num_cpus, "name": stage.label}
        if needs.num_gpus:
            options["num_gpus"] = needs.num_gpus
        if needs.memory_gib is not None:
            options["memory"] = int(needs.memory_gib * 2**30)
        if stage.process_group is not None:
            # Ray gives a worker process to one runtime environment only.
            options["runtime_env"] = {"env_vars": {"HOPE_PROCESS_GROUP": stage.process_group}}
        remote = self._on_gpu if needs.num_gpus else self._on_cpu
        store = self._runner.store
        ref = remote.options(**options).remote(store.root, store.leases.heartbeat_s, job)
        self._in_flight[ref] = Attempt(stage, job)
        self._used = _plus(self._used, needs, 1)
        self._frontier.report(EventKind.STARTED, stage, attempt=attempt)

    def _collect(self, ref: Any) -> Outcome | None:
        """Settle a task that ended; None when it will be tried again."""
        attempt = self._in_flight.pop(ref)
        self._used = _plus(self._used, attempt.stage.resources, -1)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(ref)
        except errors.TaskCancelledError:
            outcome = Outcome(interrupted=True)
        except errors.RayTaskError as error:
            # Not the stage's exception, which comes as a Failure: the job could not be read, or the store not used.
            outcome = self._failure(attempt, "error", error)
        except errors.RayError as error:
            self._frontier.know_dead(attempt.stage, attempt.job.token)
            if attempt.job.attempt <= self._runner.max_retries:
                self._retry(attempt, error)
                return None
            outcome = self._failure(attempt, "infrastructure", error)
        self._frontier.settle(attempt.stage, outcome)
        return outcome

    def _retry(self, attempt: Attempt, error: Exception) -> None:
        stage, number = attempt.stage, attempt.job.attempt
        delay_s = min(MAX_BACKOFF_S, self._runner.backoff_s * 2 ** (number - 1))
        heapq.heappush(self._delayed, (time.monotonic() + delay_s, stage.fingerprint, stage))
        message = f"{type(error).__name__}, again in {delay_s:.0f} s"
        self._frontier.report(EventKind.RETRYING, stage, attempt=number, message=message)

    def _failure(self, attempt: Attempt, kind: str, error: Exception) -> Outcome:
        store, job = self._runner.store, attempt.job
        failure = make_failure(store, job, kind, error, str(error))
        store.write_failure(failure)
        store.leases.discard(job.fingerprint, job.token)
        return Outcome(failure=failure)

    def _end_all(self) -> None:
        """Cancel what still runs, kill what has not ended after the grace time, free the leases."""
        for ref in self._in_flight:
            self._ray.cancel(ref)
        deadline = time.monotonic() + self._runner.grace_s
        tokens = [(a.job.fingerprint, a.job.token) for a in self._in_flight.values()]
        forced = False
        while self._in_flight:
            for ref in self._ready(0.1):
                self._collect_ending(ref)
            if not forced and (self._stop.hard or time.monotonic() > deadline):
                forced = True
                for ref in self._in_flight:
                    self._ray.cancel(ref, force=True)
        for fingerprint, token in tokens:
            self._runner.store.leases.discard(fingerprint, token)

    def _collect_ending(self, ref: Any) -> None:
        attempt = self._in_flight.pop(ref)
        try:
            outcome: Outcome = self._ray.get(ref)
        except self._ray.exceptions.RayError:
            outcome = Outcome(interrupted=True)
        self._frontier.settle(attempt.stage, outcome)

    def _fits(self, needs: Resources) -> bool:
        if self._runner.max_in_flight is not None:
            return len(self._in_flight) < self._runner.max_in_flight
        after = _plus(self._used, needs, 1)
        return _within(after, self._total)

    def _cluster_total(self) -> Resources:
        found = self._ray.cluster_resources()
        return _from_ray(found)

    def _check_feasible(self) -> None:
        if self._runner.max_in_flight is not None:
            return
        nodes = [_from_ray(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]
        for stage in self._frontier.open_stages():
            if not any(_within(stage.resources, node) for node in nodes):
                raise ValueError(
                    f"{stage.label} needs {stage.resources}, but the largest node has {max(nodes, key=_size)}: "
                    "lower its resources or give Ray more"
                )


def _from_ray(found: dict[str, float]) -> Resources:
    return Resources(found.get("CPU", 0), found.get("GPU", 0), found.get("memory", 0) / 2**30)


def _plus(a: Resources, b: Resources, sign: int) -> Resources:
    return Resources(
        a.num_cpus + sign * b.num_cpus,
        a.num_gpus + sign * b.num_gpus,
        (a.memory_gib or 0) + sign * (b.memory_gib or 0),
    )


def _within(needs: Resources, has: Resources) -> bool:
    slack = 1e-6  # sums of fractional resources
    return (
        needs.num_cpus <= has.num_cpus + slack
        and needs.num_gpus <= has.num_gpus + slack
        and (needs.memory_gib or 0) <= (has.memory_gib or 0) + slack
    )


def _size(node: Resources) -> tuple[float, float, float]:
    return node.num_gpus, node.num_cpus, node.memory_gib or 0
