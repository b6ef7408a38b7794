"""Frequency allocations: which axis turns which slot.

Shapes: d head dimension, d/2 slots, slot i rotates the pair (i, i + d/2) by position * theta^(-2i/d) radians.
Axis codes: 0 t, 1 h, 2 w, -1 not rotated; 3 is VRoPE's fourth index (t - h + w of the three stored ones).
Shares are given for d/2 = 64 slots and shrink with d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hope_core.parts import Part, Registry, positive

if TYPE_CHECKING:  # an allocation is a value: naming one, or asking whether it fits a model, imports no torch
    import torch
    from torch import Tensor

FREQUENCIES: Registry[Frequencies] = Registry("frequencies")
Axes = list[int] | list[list[int]]

T, H, W, FOURTH, OFF = 0, 1, 2, 3, -1
SCOPES = ("all", "vision")


class Frequencies(Part):
    """Gives every slot an axis and a frequency."""

    @property
    def hides_time(self) -> bool:
        """Whether the t row of visual tokens must be zero, so that slots on t turn for text tokens only."""
        return False

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        """The axis code of every slot; a list of them for each head where the allocation is head-wise."""
        raise NotImplementedError

    def slot_axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Tensor:
        """`axes` as int8 (num_slots,) or (heads, num_slots)."""
        import torch

        return torch.tensor(self.axes(num_slots, num_key_value_heads), dtype=torch.int8, device="cpu")

    def inverse_frequencies(self, head_dim: int, rope_theta: float, dtype: torch.dtype | None = None) -> Tensor:
        """(d/2,): radians per position of every slot, theta^(-2i/d); float32 unless `dtype` is another."""
        import torch

        exponents = torch.arange(0, head_dim, 2, dtype=dtype or torch.float32, device="cpu") / head_dim
        return 1.0 / (rope_theta**exponents)


def _eighths(num_slots: int) -> int:
    if num_slots % 8:
        raise ValueError(f"head_dim {2 * num_slots}: quarter and 3/8 shares of its slots need a multiple of 16")
    return num_slots // 8


@FREQUENCIES.register("one_axis")
@dataclass(frozen=True)
class OneAxis(Frequencies):
    """Every slot on t: 1-D RoPE."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        return [T] * num_slots


@FREQUENCIES.register("contiguous")
@dataclass(frozen=True)
class Contiguous(Frequencies):
    """M-RoPE (2409.12191): t the 16 highest frequencies, then h 24, then w 24."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        share = _eighths(num_slots)
        return [T] * (2 * share) + [H] * (3 * share) + [W] * (3 * share)


@FREQUENCIES.register("temporal_high")
@dataclass(frozen=True)
class TemporalHigh(Frequencies):
    """temporal_low with only the place of t changed: t the 16 highest frequencies, then h and w alternate."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        share = _eighths(num_slots)
        return [T] * (2 * share) + [H, W] * (3 * share)


@FREQUENCIES.register("temporal_low")
@dataclass(frozen=True)
class TemporalLow(Frequencies):
    """VideoRoPE (2502.05173, "Low-frequency Temporal Allocation"): h even, w odd slots of 0-47, t the 16 lowest."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        share = _eighths(num_slots)
        return [H, W] * (3 * share) + [T] * (2 * share)


@FREQUENCIES.register("temporal_low_extended")
@dataclass(frozen=True)
class TemporalLowExtended(TemporalLow):
    """VideoRoPE++ (YaRN-V): temporal_low whose t slots use the base b ((s L - 1) / (L - 1))^(d / (d - 2)).

    `extension` s is the target length over `trained_tokens` L.
    """

    extension: float = 4.0
    trained_tokens: int = 32768

    def __post_init__(self) -> None:
        positive("frequencies temporal_low_extended", "extension", self.extension)
        positive("frequencies temporal_low_extended", "trained_tokens - 1", self.trained_tokens - 1)

    def inverse_frequencies(self, head_dim: int, rope_theta: float, dtype: torch.dtype | None = None) -> Tensor:
        ratio = (self.extension * self.trained_tokens - 1) / (self.trained_tokens - 1)
        spatial = super().inverse_frequencies(head_dim, rope_theta, dtype)
        longer = rope_theta * ratio ** (head_dim / (head_dim - 2))
        temporal = super().inverse_frequencies(head_dim, longer, dtype)
        return temporal.where(self.slot_axes(head_dim // 2) == T, spatial)


@dataclass(frozen=True)
class _Zeroed(Frequencies):
    """Slots that never turn; scope "vision" lets them turn with t for text tokens, as in 1-D RoPE.

    Deviates: none for scope "all": the released code leaves them unrotated for text too.
    """

    scope: str = "all"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"frequencies {self.kind}: scope is {self.scope!r}; known: {', '.join(SCOPES)}")

    @property
    def hides_time(self) -> bool:
        return self.scope == "vision"

    @property
    def still(self) -> int:
        return T if self.hides_time else OFF


@FREQUENCIES.register("temporal_zero")
@dataclass(frozen=True)
class TemporalZero(_Zeroed):
    """HoPE (2505.20444, "Hybrid Frequency Allocation"): temporal_low, the 16 lowest slots not rotated."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        share = _eighths(num_slots)
        return [H, W] * (3 * share) + [self.still] * (2 * share)


@FREQUENCIES.register("temporal_zero_half")
@dataclass(frozen=True)
class TemporalZeroHalf(_Zeroed):
    """HoPE-X (2505.20444, the ideal case): h even and w odd slots of 0-31, the 32 lowest slots not rotated."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        share = _eighths(num_slots)
        return [H, W] * (2 * share) + [self.still] * (4 * share)


@FREQUENCIES.register("interleaved")
@dataclass(frozen=True)
class Interleaved(Frequencies):
    """MRoPE-I (2510.23095) and Qwen3-VL: t, h, w round robin, h and w 20 slots each, t the other 24."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        each = num_slots * 5 // 16
        return [T, H, W] * each + [T] * (num_slots - 3 * each)


@FREQUENCIES.register("headwise")
@dataclass(frozen=True)
class Headwise(Frequencies):
    """MHRoPE (2510.23095): whole key/value heads per axis, t 2, h 3, w 3 of 8; a head keeps every frequency.

    `heads` overrides the shares; heads beyond its sum are not rotated.
    """

    heads: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.heads is not None and (len(self.heads) != 3 or min(self.heads) < 0 or sum(self.heads) == 0):
            raise ValueError(f"frequencies headwise: heads is {self.heads!r}; expected three counts (t, h, w)")

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        number = num_key_value_heads
        if number is None:
            raise ValueError("frequencies headwise: num_key_value_heads is missing; axes are given to whole heads")
        if self.heads is None:
            if number < 3:
                raise ValueError(f"frequencies headwise: {number} key/value heads; three axes need at least 3")
            spatial = number * 3 // 8
            shares = (number - 2 * spatial, spatial, spatial)
        else:
            shares = self.heads
            if sum(shares) > number:
                raise ValueError(
                    f"frequencies headwise: heads {shares} need {sum(shares)} key/value heads, have {number}"
                )
        codes = [T] * shares[0] + [H] * shares[1] + [W] * shares[2]
        codes += [OFF] * (number - len(codes))
        return [[code] * num_slots for code in codes]


@FREQUENCIES.register("four_way")
@dataclass(frozen=True)
class FourWay(Frequencies):
    """VRoPE (2502.11664): its four indices round robin, slot j turned by index j mod 4."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        return [(T, H, W, FOURTH)[slot % 4] for slot in range(num_slots)]


@FREQUENCIES.register("repeated")
@dataclass(frozen=True)
class Repeated(Frequencies):
    """MM-RoPE (2507.08801): T T H W H W H W, over and over, so each axis has all frequencies."""

    def axes(self, num_slots: int, num_key_value_heads: int | None = None) -> Axes:
        return [(T, T, H, W, H, W, H, W)[slot % 8] for slot in range(num_slots)]
