"""Stages and artifacts: what runs, what it is identified by, and what it leaves behind."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.engine.fingerprint import encode, fingerprint

STAGE_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class StageConfig:
    """The two halves of a stage's config; only `identity` is hashed, `placement` is where and how it runs."""

    identity: Any
    placement: Any = None


@dataclass(frozen=True)
class Resources:
    """What one stage needs while it runs."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_gib: float | None = None


@dataclass(frozen=True)
class Workers:
    """Processes that a stage starts beside its own task, all of them at once."""

    count: int
    each: Resources


@dataclass(frozen=True)
class Artifact:
    """A stage's finished, immutable output: its folder and its JSON result."""

    stage: str
    fingerprint: str
    path: Path
    result: Mapping[str, Any]


Run = Callable[[StageConfig, Mapping[str, Artifact], Path], dict[str, Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Stage:
    """A plain function from config and inputs to an output folder.

    `run(config, inputs, out_dir)` writes its files below `out_dir` and returns a JSON-able dict; it may not keep the
    path of `out_dir`, which is renamed when the stage ends. Identity is `name`, `code_version` (raised by hand when the
    meaning of `run` changes), `config.identity` and the fingerprints of `inputs`; nothing else is hashed.

    `resumable`: after a kill, `run` finds in `out_dir` what its earlier attempt left; else `out_dir` is empty.
    `process_group`: stages of different groups never share a worker process (a trial's own variant, for instance).
    `workers`: what `run` starts on Ray beside its own task, and waits for until all of it is there.
    `work_units`: relative amount of work, to scale the durations of like stages (questions x tokens, for instance).
    """

    name: str
    code_version: int
    run: Run
    config: StageConfig
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    resources: Resources = Resources()
    workers: Workers | None = None
    label: str = ""
    resumable: bool = False
    process_group: str | None = None
    work_units: float = 1.0
    payload: dict[str, Any] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        if not STAGE_NAME.fullmatch(self.name):
            raise ValueError(f"stage name {self.name!r}: use lower-case letters, digits and underscores")
        qualified = getattr(self.run, "__qualname__", "<none>")
        if "<" in qualified:
            raise ValueError(f"stage {self.name}: run is {self.run!r}: give a function defined at module level")
        if not self.work_units > 0:
            raise ValueError(f"stage {self.name}: work_units is {self.work_units}: give a number above 0")
        # Inputs exist before this stage does, so a deep graph costs no recursion and no cycle can be.
        payload = {
            "stage": self.name,
            "code_version": self.code_version,
            "config": encode(self.config.identity),
            "inputs": {key: stage.fingerprint for key, stage in sorted(self.inputs.items())},
        }
        object.__setattr__(self, "payload", payload)
        object.__setattr__(self, "fingerprint", fingerprint(payload))
        object.__setattr__(self, "label", self.label or f"{self.name} {self.fingerprint[:8]}")

    def __repr__(self) -> str:
        # The generated one would print the whole graph below this stage.
        return f"Stage({self.label!r}, fingerprint={self.fingerprint[:8]})"


def walk(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Yield every stage that the given ones rest on and themselves, inputs first, each fingerprint once."""
    seen: set[str] = set()
    for target in stages:
        stack = [(target, False)]
        while stack:
            stage, inputs_done = stack.pop()
            if stage.fingerprint in seen:
                continue
            if inputs_done:
                seen.add(stage.fingerprint)
                yield stage
            else:
                stack.append((stage, True))
                stack.extend((needed, False) for needed in reversed(list(stage.inputs.values())))
