"""The method: multimodal rotary position embeddings for long video. See `hope_core.modeling` to put one in a model."""

from hope_core.positions import Positions, compute_positions
from hope_core.rotary import apply_rotary, rotary_tables
from hope_core.scaling import AbsoluteTime, Dynamic, Fixed, NoScaling
from hope_core.segments import VisionTokens
from hope_core.variants import Variant, draw_scales, get_variant, list_variants, make_variant

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
