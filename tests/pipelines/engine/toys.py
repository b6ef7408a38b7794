"""Toy stages: module-level functions that any worker process can import."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine import Artifact, StageConfig


@dataclass(frozen=True)
class Toy:
    """Identity of every toy: `key` tells two of them apart."""

    key: str = ""
    value: int = 0


@dataclass(frozen=True)
class Witness:
    """Placement of every toy: a folder outside the store in which each run leaves one file."""

    folder: Path


def witness(config: StageConfig, **facts: Any) -> None:
    """Leave one file for this run, so that a test can count runs."""
    if config.placement is not None:
        name = f"{config.identity.key}.{uuid.uuid4().hex}.json"
        (config.placement.folder / name).write_text(json.dumps({"pid": os.getpid(), **facts}))


def runs(folder: Path, key: str = "") -> list[dict[str, Any]]:
    """Return what each run of the toys with this key left, oldest first."""
    paths = sorted(folder.glob(f"{key}.*.json" if key else "*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def add(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Add the inputs' values to the own one."""
    witness(config)
    value = config.identity.value + sum(artifact.result["value"] for artifact in inputs.values())
    (out_dir / "value.txt").write_text(str(value))
    print(f"{config.identity.key} is {value}")
    return {"value": value}


def fail(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    witness(config)
    (out_dir / "partial.txt").write_text("left by the failing attempt")
    raise RuntimeError(f"no luck with {config.identity.key}")
