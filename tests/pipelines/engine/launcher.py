"""A launcher for tests to kill: python -m tests.pipelines.engine.launcher STORE DESK KEYS STAGE RUNNER WAIT_FOR."""

import importlib
import json
import sys
from pathlib import Path

from pipelines.engine import LocalRunner, RayRunner, Store
from tests.pipelines.engine import toys


def main(store: str, desk: str, keys: str, stage: str, runner: str, wait_for: str) -> None:
    if wait_for:
        print("ready", flush=True)
        toys.wait_until((Path(desk) / wait_for).exists)
    if runner == "ray, imported first":
        importlib.import_module("ray")
    run = getattr(toys, stage)
    stages = [toys.toy(run, key, Path(desk), resumable=True) for key in keys.split(",")]
    there = Store(store, heartbeat_s=0.2)
    used = LocalRunner(there, poll_s=0.05) if runner == "local" else RayRunner(there, num_cpus=2, poll_s=0.05)
    summary = used.run(stages, lambda event: print(event.kind, event.stage.config.identity.key, flush=True))
    counts = {name: len(getattr(summary, name)) for name in ("finished", "cached", "failed", "interrupted", "not_run")}
    print(json.dumps(counts | {"was_interrupted": summary.was_interrupted}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
