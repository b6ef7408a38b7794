"""Checkpoints inside a training: what a killed worker goes on from.

`progress/step-N/` holds `tensors.safetensors` (trained weights and the optimiser's tensors) and `state.json`, for going
on with step N; `progress/best-N/` the trained weights after step N, those of the lowest held-out loss. Each appears by
one rename, and what it replaces goes then: of the best there are two where the last checkpoint knows an earlier one.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Best:
    """The lowest held-out loss so far, and the step after which it was measured."""

    step: int
    loss: float


def save(
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    used: Used,
    best: Best | None,
    writes: bool,
) -> None:
    """Keep the state before `step`. Every worker calls this; the one that `writes` does."""
    tensors = whole(_tensors(model, optimizer), writes=writes)
    if not writes:
        return
    state = asdict(used) | {"step": step, "best": best and asdict(best)}
    _put(folder / f"step-{step}", tensors, state)
    _remove(folder, "step", lambda other: other != step)
    _remove(folder, "best", lambda other: best is None or other != best.step)


def save_best(folder: Path, model: Any, *, step: int, writes: bool) -> None:
    """Keep the trained weights after `step`, the best so far. Every worker calls this; the one that `writes` does."""
    tensors = whole(((f"{WEIGHT}/{name}", weight) for name, weight in _trained(model)), writes=writes)
    if not writes:
        return
    _put(folder / f"best-{step}", tensors, {})
    checkpoint = last_step(folder)
    _remove(folder, "best", lambda other: checkpoint <= other != step)


def last_step(folder: Path) -> int:
    """The step of the last whole checkpoint, 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("step-*")), default=0)


def restore(folder: Path, step: int, model: Any, optimizer: torch.optim.Optimizer) -> tuple[Used, Best | None]:
    """Put the state before `step` into a freshly built model and optimiser."""
    source = folder / f"step-{step}"
    _fill(source, model, optimizer.state)
    state = json.loads((source / STATE).read_text(encoding="utf-8"))
    scales = tuple((float(scale), int(count)) for scale, count in state["scales"])
    best = state.get("best")
    return Used(state["samples_sha256"], state["position_ids_sha256"], scales), Best(**best) if best else None


def restore_best(folder: Path, best: Best, model: Any) -> None:
    """Put the best weights into the model. Every worker calls this."""
    _fill(folder / f"best-{best.step}", model, {})


def forget(folder: Path, history: Path, step: int) -> None:
    """Drop what comes of steps that will be done again: the history's lines and the best weights."""
    _remove(folder, "best", lambda other: other >= step)
    if history.exists():
        whole = [line for line in history.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        history.write_text("".join(line for line in whole if json.loads(line)["step"] < step), encoding="utf-8")


def whole(tensors: Iterable[tuple[str, Tensor]], *, writes: bool) -> dict[str, Tensor]:
    """All tensors unsharded on the CPU, on the worker that `writes`; the others take part and have none."""
    found = {}
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            found[name] = whole.detach().cpu().contiguous().clone()
    return found


def _put(target: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    partial = target.parent / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    if not target.exists():  # a resumed training comes by the step that it started from
        partial.rename(target)


def _remove(folder: Path, kind: str, unwanted: Callable[[int], bool]) -> None:
    for path in folder.glob(f"{kind}-*"):
        if unwanted(int(path.name.split("-")[1])):
            shutil.rmtree(path)


def _fill(source: Path, model: Any, optimizer_state: MutableMapping[Any, Any]) -> None:
    """Put the tensors of a folder into the model's trained weights and the optimiser's state."""
    parameters = dict(_trained(model))
    with safe_open(source / TENSORS, "pt") as file:
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
                optimizer_state[parameter][slot] = saved


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _tensors(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Trained weights and the optimiser's tensors of each, in one order on every worker."""
    for name, parameter in _trained(model):
        yield f"{WEIGHT}/{name}", parameter
        for slot, tensor in sorted(optimizer.state.get(parameter, {}).items()):
            yield f"{slot}/{name}", tensor
