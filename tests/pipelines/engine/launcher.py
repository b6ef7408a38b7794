"""A launcher for tests to kill: python -m tests.pipelines.engine.launcher STORE DESK KEYS RUNNER STAGE."""

import json
import sys
from pathlib import Path

from pipelines.engine import LocalRunner, RayRunner, Store
from tests.pipelines.engine import toys


def main(store: str, desk: str, keys: str, runner: str, stage: str) -> None:
    run = getattr(toys, stage)
    stages = [toys.toy(run, key, Path(desk), resumable=True) for key in keys.split(",")]
    there = Store(store, heartbeat_s=0.2)
    used = LocalRunner(there, poll_s=0.05) if runner == "local" else RayRunner(there, num_cpus=2, poll_s=0.05)
    summary = used.run(stages, lambda event: print(event.kind, event.stage.config.identity.key, flush=True))
    counts = {name: len(getattr(summary, name)) for name in ("finished", "cached", "failed", "interrupted", "not_run")}
    print(json.dumps(counts | {"was_interrupted": summary.was_interrupted}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
