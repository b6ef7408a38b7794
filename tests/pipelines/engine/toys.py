"""Toy stages: module-level functions that any worker process can import."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine import Artifact, Stage, StageConfig


@dataclass(frozen=True)
class Toy:
    """Identity of every toy: `key` tells two of them apart."""

    key: str = ""
    value: int = 0


@dataclass(frozen=True)
class Desk:
    """Placement of every toy: a folder outside the store where runs leave witnesses and wait for a gate to open."""

    folder: Path
    extra: str = ""


def toy(run: Any, key: str, folder: Path, *, value: int = 1, extra: str = "", **details: Any) -> Stage:
    return Stage(run.__name__, 1, run, StageConfig(Toy(key, value), Desk(folder, extra)), **details)


def witness(config: StageConfig, **facts: Any) -> int:
    """Leave one file for this run, so that a test can count runs; return how many there are of this key."""
    folder, key = config.placement.folder, config.identity.key
    path = folder / f"{key}.{uuid.uuid4().hex}.json"
    path.with_suffix(".tmp").write_text(json.dumps({"key": key, "pid": os.getpid(), **facts}))
    path.with_suffix(".tmp").rename(path)
    return len(runs(folder, key))


def runs(folder: Path, key: str = "*") -> list[dict[str, Any]]:
    """Return what each run of the toys with this key left, oldest first."""
    paths = sorted(folder.glob(f"{key}.*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def wait_until(true: Any, timeout_s: float = 180) -> None:
    """Wait for a fact that another process brings about."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if true():
            return
        pause.wait(0.01)
    raise TimeoutError(f"{true} did not come true in {timeout_s} s")


def add(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Add the inputs' values to the own one."""
    witness(config)
    value = config.identity.value + sum(artifact.result["value"] for artifact in inputs.values())
    (out_dir / "value.txt").write_text(str(value))
    print(f"{config.identity.key} is {value}")
    return {"value": value}


def nothing(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    return {}


def fail(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    witness(config)
    (out_dir / "partial.txt").write_text("left by the failing attempt")
    raise RuntimeError(f"no luck with {config.identity.key}")


def wait_for_gate(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Wait until the test makes the file `gate`; say what an earlier attempt left in the folder."""
    found = sorted(path.name for path in out_dir.iterdir())
    (out_dir / "partial.txt").write_text("half")
    witness(config, found=found)
    try:
        wait_until((config.placement.folder / "gate").exists)
    except KeyboardInterrupt:
        (out_dir / "cleaned_up.txt").write_text("an interrupt leaves time for this, a kill does not")
        raise
    return {"found": found}


def wait_for_gate_and_fail(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    wait_for_gate(config, inputs, out_dir)
    raise RuntimeError("no luck")


def die_once(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Take the worker process down at the first run, as a crash in a C library would."""
    found = sorted(path.name for path in out_dir.iterdir())
    (out_dir / "partial.txt").write_text("half")
    if witness(config) == 1:
        os._exit(1) if config.placement.extra == "exit" else os.kill(os.getpid(), signal.SIGKILL)
    return {"found": found}


def die(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    witness(config)
    print("about to die", flush=True)
    os._exit(1)


def ignore_interrupts(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Hang as a library does that never returns to Python: no interrupt ends it."""
    witness(config)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait(600)


def write_everywhere(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    print("from Python")
    print("from Python's stderr", file=sys.stderr)
    os.write(1, b"from C\n")
    subprocess.run(["echo", "from a child process"], check=True)
    return {}


def return_extra(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> Any:
    """Return what the placement names, none of which is a JSON object of finite numbers."""
    (out_dir / "partial.txt").write_text("left")
    return {"nan": {"loss": math.nan}, "path": {"checkpoint": out_dir}, "none": None}[config.placement.extra]


def leave_the_process(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    sys.exit("bad argument")


def write_record(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    (out_dir / "record.json").write_text("mine")
    return {}


def tell_threads(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    import torch

    return {"torch": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"]}


def tell_gpus(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """The GPUs that this stage sees, and what tasks of its own see that ask for as many as the placement names."""
    import ray

    def seen() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    tasks = [ray.remote(num_cpus=0, num_gpus=int(number))(seen) for number in config.placement.extra.split()]
    return {"own": seen(), "of tasks": ray.get([task.remote() for task in tasks])}
