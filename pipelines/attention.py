"""Which attention a model runs with: flash attention where the device, the dtype and a package allow it, else SDPA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# A config names its attention without torch and transformers, which take seconds to import: what loads brings them.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pipelines.pretrained import PretrainedModel

AUTO = "auto"
PLAIN = ("sdpa", "eager")


@dataclass(frozen=True)
class FlashKernel:
    """A flash attention of transformers: the package that brings it and the least compute capability of a GPU."""

    package: str
    is_installed: Callable[[], bool]
    capability: tuple[int, int]


def _transformers_says(check: str) -> bool:
    from transformers import utils

    return bool(getattr(utils, check)())


# In the order in which "auto" tries them: the second generation is the one that most checkpoints were trained with.
FLASH = {
    "flash_attention_2": FlashKernel("flash-attn", partial(_transformers_says, "is_flash_attn_2_available"), (8, 0)),
    "flash_attention_3": FlashKernel("flash-attn-3", partial(_transformers_says, "is_flash_attn_3_available"), (9, 0)),
    "flash_attention_4": FlashKernel("flash-attn-4", partial(_transformers_says, "is_flash_attn_4_available"), (9, 0)),
}
WISHES = (AUTO, *PLAIN, *FLASH)


def choose_attention(wish: str, device: torch.device, dtype: torch.dtype) -> str:
    """The `attn_implementation` of transformers to use on this device with this dtype (that of the computation).

    "auto" is the first flash attention that can be had, else "sdpa"; any other wish is granted or refused.
    Raises ValueError for an unknown wish, or one that cannot be had here.
    """
    if wish not in WISHES:
        raise ValueError(f"attention is {wish!r}; allowed are {', '.join(WISHES)}")
    if wish in PLAIN:
        return wish
    if wish == AUTO:
        return next((name for name in FLASH if not obstacle(name, device, dtype)), "sdpa")
    if reason := obstacle(wish, device, dtype):
        raise ValueError(f"attention is {wish!r}, but it {reason}; use auto or sdpa")
    return wish


def obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps a flash attention from running here, as in "it needs ..."; None if nothing does."""
    import torch

    kernel = FLASH[name]
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if not kernel.is_installed():
        return f"needs the package {kernel.package}, which is not installed or finds no CUDA device"
    has = torch.cuda.get_device_capability(device)
    if has < kernel.capability:
        return f"needs a GPU of compute capability {_version(kernel.capability)}, not {_version(has)}"
    return None


def lent_device() -> torch.device:
    """The GPU that Ray lent to this process, else the CPU; Ray shows a stage only the GPUs that it asked for."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_to_answer(path: Path) -> PreTrainedModel:
    """A checkpoint with its variant, in eval mode: in bfloat16 on a GPU that was lent, else as saved."""
    import torch

    from hope_core.modeling import load

    device = lent_device()
    dtype = torch.bfloat16 if device.type == "cuda" else "auto"
    attention = choose_attention(AUTO, device, torch.bfloat16)
    return load(path, dtype=dtype, attn_implementation=attention).to(device).eval()


def stock_to_answer(model: PretrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint as it came, for its vision tower, where and as `load_to_answer` has it; `dtype`: without a GPU."""
    import torch

    device = lent_device()
    if device.type == "cuda":
        dtype = torch.bfloat16
    tower = replace(model, language=None)
    return tower.load(dtype=dtype, attention=choose_attention(AUTO, device, dtype)).to(device).eval()


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
