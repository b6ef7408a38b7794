"""The method: multimodal rotary position embeddings for long video. See `hope_core.modeling` to put one in a model."""

import importlib
from typing import TYPE_CHECKING, Any

from hope_core.scaling import AbsoluteTime, Dynamic, Fixed, NoScaling
from hope_core.variants import Variant, draw_scales, get_variant, list_variants, make_variant

if TYPE_CHECKING:
    from hope_core.positions import Positions, compute_positions
    from hope_core.rotary import apply_rotary, rotary_tables
    from hope_core.segments import VisionTokens

__all__ = [
    "AbsoluteTime",
    "Dynamic",
    "Fixed",
    "NoScaling",
    "Positions",
    "Variant",
    "VisionTokens",
    "apply_rotary",
    "compute_positions",
    "draw_scales",
    "get_variant",
    "list_variants",
    "make_variant",
    "rotary_tables",
]

# Variants are values: a study is planned without torch, whose import takes two seconds. What computes brings it along.
_COMPUTES = {
    "Positions": "positions",
    "VisionTokens": "segments",
    "apply_rotary": "rotary",
    "compute_positions": "positions",
    "rotary_tables": "rotary",
}


def __getattr__(name: str) -> Any:
    if name not in _COMPUTES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_COMPUTES[name]}"), name)
