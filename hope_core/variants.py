"""Variants: named triples of position design x frequency allocation x temporal scaling, and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hope_core.designs import POSITIONS, CornerTime, PositionDesign, SmallStep, Symmetric
from hope_core.frequencies import FREQUENCIES, FourWay, Frequencies
from hope_core.scaling import SCALINGS, AbsoluteTime, Dynamic, Fixed, NoScaling, Scaling, draw

if TYPE_CHECKING:
    from torch import Tensor

PositionSpec = str | Mapping[str, Any] | PositionDesign
FrequencySpec = str | Mapping[str, Any] | Frequencies
ScalingSpec = str | Mapping[str, Any] | Scaling


@dataclass(frozen=True)
class Variant:
    """One way to place and rotate tokens: a frozen, JSON-able value. ValueError for parts that cannot go together."""

    name: str
    positions: PositionDesign
    frequencies: Frequencies
    scaling: Scaling

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"variant name is {self.name!r}; it must be a word")
        POSITIONS.check(self.positions)
        FREQUENCIES.check(self.frequencies)
        SCALINGS.check(self.scaling)
        timed = isinstance(self.scaling, AbsoluteTime)
        if isinstance(self.positions, CornerTime) and not timed:
            why = "corner_time floors seconds: use scaling absolute_time, or positions corner"
        elif not self.positions.scalable and not isinstance(self.scaling, NoScaling):
            why = f"{self.positions.kind} has no step between frames to scale: use scaling none, or other positions"
        elif isinstance(self.positions, SmallStep) and timed:
            why = "small_step has a step per token, not per frame: use scaling none, fixed or dynamic"
        elif isinstance(self.positions, Symmetric) != isinstance(self.frequencies, FourWay):
            why = "symmetric holds VRoPE's four indices and only four_way reads them: use both or neither"
        else:
            return
        raise ValueError(
            f"{self.name}: positions {self.positions.kind}, frequencies {self.frequencies.kind} and "
            f"scaling {self.scaling.kind} cannot go together; {why}"
        )

    @property
    def scalable(self) -> bool:
        """Whether a factor changes its positions. (On Qwen3-VL none does: there no block has two frames.)"""
        return self.positions.scalable and not isinstance(self.scaling, AbsoluteTime)

    @property
    def factor(self) -> float | None:
        """The factor it has by itself, in positions per frame; None for dynamic and absolute_time."""
        if isinstance(self.scaling, Fixed):
            return self.scaling.factor
        return 1.0 if isinstance(self.scaling, NoScaling) else None

    @property
    def inference_scale(self) -> float | None:
        """The published factor for evaluation, None if there is none. Never used by itself: see `at_scale`."""
        return self.scaling.inference if isinstance(self.scaling, Dynamic) else self.factor

    def at_scale(self, factor: float) -> Variant:
        """This variant with one factor (positions per frame) and the same name, as inference needs it.

        Raises ValueError where a factor has no effect.
        """
        if not self.scalable:
            raise ValueError(
                f"{self.name} has no scale to set: {self.unscalable_because}; leave it out of scale searches"
            )
        return self.replace(scaling=Fixed(factor))

    @property
    def unscalable_because(self) -> str:
        if isinstance(self.scaling, AbsoluteTime):
            return "scaling absolute_time takes the step from the video's seconds"
        return f"positions {self.positions.kind} has no step between frames"

    def replace(
        self,
        *,
        name: str | None = None,
        positions: PositionSpec | None = None,
        frequencies: FrequencySpec | None = None,
        scaling: ScalingSpec | None = None,
    ) -> Variant:
        """The same with other parts, given as in `make_variant`."""
        return make_variant(
            name or self.name,
            positions=positions or self.positions,
            frequencies=frequencies or self.frequencies,
            scaling=scaling or self.scaling,
        )

    def check_sizes(self, head_dim: int, num_key_value_heads: int | None = None) -> None:
        """Raise ValueError when the allocation cannot be made for these sizes. Imports no torch."""
        self.frequencies.axes(_slots(head_dim), num_key_value_heads)

    def slot_axes(self, head_dim: int, num_key_value_heads: int | None = None) -> Tensor:
        """The axis of every slot: 0 t, 1 h, 2 w, -1 not rotated, 3 VRoPE's fourth index (t - h + w).

        int8 (head_dim / 2,), or (num_key_value_heads, head_dim / 2) for a head-wise allocation.
        Raises ValueError when the allocation cannot be made for these sizes.
        """
        return self.frequencies.slot_axes(_slots(head_dim), num_key_value_heads)

    def inverse_frequencies(self, head_dim: int, rope_theta: float) -> Tensor:
        """float32 (head_dim / 2,): radians per position of every slot, theta^(-2i/d) (videorope_pp: other)."""
        _slots(head_dim)
        return self.frequencies.inverse_frequencies(head_dim, rope_theta)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, {"name", "positions", "frequencies", "scaling"}; `from_dict` restores an equal variant."""
        parts = {"positions": self.positions, "frequencies": self.frequencies, "scaling": self.scaling}
        return {"name": self.name} | {axis: part.to_dict() for axis, part in parts.items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Variant:
        """The variant of `to_dict`. Raises ValueError for other keys and unknown values, with the known ones."""
        keys = ("name", "positions", "frequencies", "scaling")
        if set(value) != set(keys):
            raise ValueError(f"variant has the keys {', '.join(map(str, value)) or 'none'}; expected {', '.join(keys)}")
        return make_variant(**cast(dict[str, Any], value))


def make_variant(
    name: str, *, positions: PositionSpec, frequencies: FrequencySpec, scaling: ScalingSpec = "none"
) -> Variant:
    """A variant from parts: each a name, {"kind": name, parameter: value}, or the part itself.

    Raises ValueError for an unknown kind or parameter, and for a combination that cannot be, saying why.
    """
    return Variant(name, POSITIONS.build(positions), FREQUENCIES.build(frequencies), SCALINGS.build(scaling))


# The registry: a name and its positions, frequencies and scaling, each as `make_variant` takes them.
_REGISTERED: dict[str, tuple[PositionSpec, FrequencySpec, ScalingSpec]] = {
    "vanilla": ("sequential", "one_axis", "none"),
    "tad_rope": ("tad", "one_axis", "none"),
    "m_rope": ("corner", "contiguous", "none"),
    "m_rope_hf5": ("corner_hf5", "contiguous", "none"),
    "qwen2_5_time": ("corner_time", "contiguous", "absolute_time"),
    "videorope": ("diagonal", "temporal_low", Fixed(2.0)),
    # 1.5 on MLVU, LongVideoBench and Video-MME; 0.75 on V-NIAH
    "hope": ("diagonal", "temporal_zero", Dynamic(inference=1.5)),
    "hope_x": ("diagonal", "temporal_zero_half", "dynamic"),
    "mrope_interleave": ("corner", "interleaved", "none"),
    "mrope_interleave_reset": ("spatial_reset", "interleaved", "none"),
    "mhrope": ("corner", "headwise", "none"),
    "mhrope_reset": ("spatial_reset", "headwise", "none"),
    "vrope": ("symmetric", "four_way", "none"),
    "v2pe": ("small_step", "one_axis", Dynamic(tuple(2.0**-power for power in range(9)))),
    "circlerope": ("ring", "contiguous", "none"),
    "ilrope": ("spatial_reset", "interleaved", "none"),
    "omnirope": ("spatial_reset", "contiguous", "none"),
    "mmrope": ("corner", "repeated", "none"),
    "videorope_pp": ("diagonal", "temporal_low_extended", Fixed(2.0)),
}
_VARIANTS = {
    name: make_variant(name, positions=positions, frequencies=frequencies, scaling=scaling)
    for name, (positions, frequencies, scaling) in _REGISTERED.items()
}


def list_variants() -> list[str]:
    """Names of the registered variants."""
    return list(_VARIANTS)


def get_variant(name: str) -> Variant:
    """A registered variant. Raises ValueError for an unknown name, with the known ones."""
    if name not in _VARIANTS:
        raise ValueError(f"unknown variant {name!r}; known: {', '.join(_VARIANTS)}")
    return _VARIANTS[name]


def draw_scales(variant: Variant, num_blocks: int, *, seed: int, epoch: int, sample_id: str | int) -> tuple[float, ...]:
    """The temporal factor of each image and video of one training sample, in order: `scales` of `compute_positions`.

    Depends on (seed, epoch, sample_id) only, so any batch size and number of workers draws the same
    (2505.20444, "Dynamic Temporal Scaling"). A variant that is not dynamic gets its own factor, 1 if it has none.
    Deviates: the released code draws from the process's unseeded generator, also in eval mode.
    """
    if isinstance(variant.scaling, Dynamic):
        return tuple(draw(variant.scaling.choices, num_blocks, seed=seed, epoch=epoch, sample_id=sample_id))
    return (variant.factor or 1.0,) * num_blocks


def _slots(head_dim: int) -> int:
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; it must be an even number")
    return head_dim // 2
