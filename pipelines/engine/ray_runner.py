"""A runner that runs each stage as one Ray task. Ray itself is imported and started when the first stage must run."""

import os
import secrets
import socket
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pipelines.engine.frontier import Frontier
from pipelines.engine.ray_dispatch import HIDE_GPUS, Dispatch, Policy, StopFlag, check_nodes
from pipelines.engine.runner import OnEvent, OnFailure, Summary, ignore, signals_call
from pipelines.engine.stage import Stage
from pipelines.engine.store import Store

# Ray gives a node 30 s to come up and cannot be told another time; a busy or slow machine needs a second start, whose
# files the first has already read.
STARTS = 3
TOO_SLOW = "timed out during startup"


NO_CLUSTER = "start one there with ray start --head, or leave out cluster.address"
CONNECT_TIMEOUT_S = 10.0


def refuse_unreachable(address: str) -> None:
    """Raise ValueError if nothing answers at HOST:PORT, where Ray itself would try for ten minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # auto, or another way of saying it: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address} ({error}): {NO_CLUSTER}") from None


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
        self.dashboard = dashboard
        self.policy = Policy(on_failure, max_retries, backoff_s, max_in_flight, grace_s, poll_s, seed)
        self._started_ray = False

    def run(self, stages: Sequence[Stage], on_event: OnEvent = ignore) -> Summary:
        """Run what is missing. Ctrl-C and SIGTERM end what runs as interrupted; a second one does not wait for it.

        Raises ValueError as `check` does.
        """
        frontier = Frontier(self.store, stages, on_event)
        stop = StopFlag()
        with signals_call(stop.on_signal) as reinstall:
            frontier.start()
            if frontier.is_open and not stop.is_set:
                self.store.prepare()
                self.check(list(frontier.open_stages()))
                reinstall()
                Dispatch(self.store, frontier, self.policy, stop, joined=self.address is not None).run()
        frontier.was_interrupted = stop.is_set
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

    def check(self, stages: Sequence[Stage]) -> None:
        """Start or join Ray as `run` does. Raises ValueError if it cannot, or a stage needs more than any node has."""
        self.connect()
        if self.policy.max_in_flight is None:  # else an autoscaler may bring the node
            check_nodes(stages)

    def connect(self) -> None:
        """Start or join Ray now, unless it is up. Raises ValueError in one line if there is none to join, or no start.

        `run` does so when a stage must run.
        """
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            return
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        local: dict[str, Any] = {}
        if self.address is None:
            os.environ.update(HIDE_GPUS)  # Ray's workers have it from here, and need no environment of their own
            if "ray" not in sys.modules:  # it reads the mode once, when imported, and else turns the token on by itself
                os.environ.setdefault("RAY_AUTH_MODE", "token")  # said, as its default depends on what ran here before
            if not self.dashboard and "RAY_AUTH_TOKEN_PATH" not in os.environ:
                # Ray turns token auth on by itself, and without this would leave a token file in the home directory,
                # which changes how later clusters start. The dashboard needs that file: there a user types the token.
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            local = {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "include_dashboard": self.dashboard,
                "dashboard_host": "127.0.0.1",
                # A trial's process waits for the trial's next stage; a new one would import everything again.
                "_system_config": {"idle_worker_killing_time_threshold_ms": 20_000},
            }
        else:
            refuse_unreachable(self.address)
        import ray

        # Without an address ray.init joins whatever cluster the environment or an earlier `ray start` names.
        for attempt in range(1, STARTS + 1):
            try:
                ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **local)
                break
            except Exception as error:  # too slow a start has no class of its own
                ray.shutdown()
                if self.address and isinstance(error, ConnectionError):
                    raise ValueError(f"no Ray cluster found at {self.address}: {NO_CLUSTER}") from error
                if TOO_SLOW not in str(error):
                    raise
                if attempt == STARTS:
                    raise ValueError(f"Ray did not start within 30 s, {STARTS} times: is the machine busy?") from error
        self._started_ray = True
