"""An accelerator that is not there: tensors that say they lie on it, whose data lie on the CPU.

It computes what the CPU computes, and refuses what CUDA refuses: a tensor of the one device beside a tensor of the
other. So it finds a tensor that somebody forgot to move, and says nothing of kernels, memory or speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Emulated(Tensor):
    """A tensor of the emulated device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Emulated":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="emulated:0",
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Emulated({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operator on the data, and give what it returns the device that it would have."""
    is_copy = func.overloadpacket in COPIES
    there = [value for value in _pytree.tree_leaves((args, kwargs)) if isinstance(value, Emulated)]
    if there and not is_copy:
        refuse_two_devices(func, args, kwargs)
    wanted = kwargs.get("device")
    if wanted is None:
        on_device = isinstance(args[0], Emulated) if is_copy else bool(there)
    else:
        on_device = torch.device(wanted).type == "emulated"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    of_held = {id(value.held): value for value in there}
    args, kwargs = _pytree.tree_map_only(Emulated, lambda value: value.held, (args, kwargs))
    made = func(*args, **kwargs)

    def wrap(value: Tensor) -> Tensor:
        if id(value) in of_held:
            return of_held[id(value)]
        return Emulated(value) if on_device else value

    return _pytree.tree_map_only(Tensor, wrap, made)


def refuse_two_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Raise as CUDA does, which takes scalars of the CPU beside its own tensors, and indices into one of its own."""
    if func.overloadpacket in INDEXED and isinstance(args[0], Emulated):
        args = (args[0], *args[2:])
    given = [value for value in _pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value.dim()]
    elsewhere = [tuple(value.shape) for value in given if not isinstance(value, Emulated)]
    if elsewhere:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {elsewhere} on the CPU")


class Module(backend_registration._DummyBackendModule):
    """What torch asks `torch.emulated`, as it asks torch.cuda."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class Hooks(torch._C._acc.PrivateUse1Hooks):
    """The device is there while it is emulated, so that no later test of the process finds it."""

    there = False

    def is_available(self) -> bool:
        return Hooks.there

    def has_primary_context(self, device_index: int) -> bool:
        return Hooks.there

    def is_built(self) -> bool:
        return True


@contextmanager
def emulated_device() -> Iterator[torch.device]:
    """The device, which is there until the block ends."""
    if not hasattr(torch, "emulated"):
        backend_registration._setup_privateuseone_for_python_backend("emulated", Module(), Hooks())
        # torch.tensor of a list with scalars of the device asks the device itself for them
        torch.library.impl("aten::_local_scalar_dense", "privateuseone", lambda scalar: scalar.held.item())
    before = torch._C._only_lift_cpu_tensors()
    Hooks.there = True
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) then asks the mode for its copy
    try:
        with Mode(), torch.autograd.set_multithreading_enabled(False):  # no thread of the device for gradients
            yield torch.device("emulated:0")
    finally:
        Hooks.there = False
        torch._C._set_only_lift_cpu_tensors(before)
