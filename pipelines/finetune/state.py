"""Checkpoints inside a training: what a killed worker goes on from.

`progress/step-N/` holds `tensors.safetensors` (trained weights and the optimiser's tensors) and `state.json`; it
appears by one rename, and the one before it goes then.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

TENSORS, STATE = "tensors.safetensors", "state.json"
WEIGHT = "weight"


@dataclass(frozen=True)
class Used:
    """What training really used so far: chained sha256 of samples and position ids, and how often which scale."""

    samples_sha256: str = ""
    position_ids_sha256: str = ""
    scales: tuple[tuple[float, int], ...] = ()


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, *, step: int, used: Used, writes: bool) -> None:
    """Keep the state before `step`. Every worker calls this; the one that `writes` does."""
    tensors = {}
    for name, tensor in _tensors(model, optimizer):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            tensors[name] = whole.detach().cpu().contiguous().clone()
    if not writes:
        return
    target = folder / f"step-{step}"
    partial = folder / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS)
    state = {"step": step, "samples_sha256": used.samples_sha256, "position_ids_sha256": used.position_ids_sha256}
    (partial / STATE).write_text(json.dumps({**state, "scales": used.scales}), encoding="utf-8")
    if not target.exists():  # a resumed training comes by the step that it started from
        partial.rename(target)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other)


def last_step(folder: Path) -> int:
    """The step of the last whole checkpoint, 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("step-*")), default=0)


def restore(folder: Path, step: int, model: Any, optimizer: torch.optim.Optimizer) -> Used:
    """Put the state before `step` into a freshly built model and optimiser."""
    source = folder / f"step-{step}"
    with safe_open(source / TENSORS, "pt") as file:
        parameters = dict(_trained(model))
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            slot, name = key.split("/", 1)
            parameter = parameters[name]
            saved = file.get_tensor(key)
            if saved.ndim:
                saved = saved.to(parameter.device)
                if isinstance(parameter, DTensor):
                    saved = distribute_tensor(saved, parameter.device_mesh, parameter.placements)
            if slot == WEIGHT:
                with torch.no_grad():
                    parameter.copy_(saved)
            else:
                optimizer.state[parameter][slot] = saved
    state = json.loads((source / STATE).read_text(encoding="utf-8"))
    scales = tuple((float(scale), int(count)) for scale, count in state["scales"])
    return Used(state["samples_sha256"], state["position_ids_sha256"], scales)


def keep_lines(path: Path, step: int) -> None:
    """Cut the history's lines of steps that will be done again."""
    if path.exists():
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in whole if json.loads(line)["step"] < step), encoding="utf-8")


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _tensors(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Trained weights and the optimiser's tensors of each, in one order on every worker."""
    for name, parameter in _trained(model):
        yield f"{WEIGHT}/{name}", parameter
        for slot, tensor in sorted(optimizer.state.get(parameter, {}).items()):
            yield f"{slot}/{name}", tensor
