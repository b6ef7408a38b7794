"""Position designs: where a visual block's tokens sit.

Shapes: K visual blocks, N visual tokens, three rows t, h, w. A block (T, H, W) starts at s, the row's running index;
a design returns what is added to s for every token (f, y, x), and the block's extent: the next index is s + extent.
`a` is the temporal factor of the block (hope_core.scaling). Offsets in multiples of a are float32; the others, and the
extents, which are summed over the whole row, are float64.

Designs are written with the methods of tensors, so that naming one does not import torch, which takes two seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hope_core.parts import Part, Registry, positive

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS: Registry[PositionDesign] = Registry("positions")


@dataclass(frozen=True)
class Cells:
    """Tokens of all blocks: f, y, x float32 (N,) and their block (N,); frames, rows, columns, factor float64 (K,)."""

    f: Tensor
    y: Tensor
    x: Tensor
    block: Tensor
    frames: Tensor
    rows: Tensor
    columns: Tensor
    factor: Tensor

    def spread(self, value: Tensor) -> Tensor:
        """A number per block (K,) as one per token, float32 (N,)."""
        return value.float()[self.block]

    def time(self) -> Tensor:
        """a f (N,)."""
        return self.f * self.spread(self.factor)

    def last_time(self) -> Tensor:
        """a (T - 1) (K,)."""
        return self.factor * (self.frames - 1)


class PositionDesign(Part):
    """Places visual tokens."""

    text_step: ClassVar[int] = 1  # positions from one text token to the next
    scalable: ClassVar[bool] = True  # whether a changes anything
    anchored: ClassVar[tuple[bool, bool, bool]] = (True, True, True)  # rows t, h, w that count from s

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """((t, h, w) of shape (N,) each, extent (K,))."""
        raise NotImplementedError


def _index(cells: Cells) -> Tensor:
    """Running index of every token in its block (N,)."""
    return (cells.f * cells.spread(cells.rows) + cells.y) * cells.spread(cells.columns) + cells.x


@POSITIONS.register("sequential")
@dataclass(frozen=True)
class Sequential(PositionDesign):
    """Vanilla 1-D RoPE: s + k on all axes; next s + T H W."""

    scalable = False

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        index = _index(cells)
        return (index, index, index), cells.frames * cells.rows * cells.columns


@POSITIONS.register("frame")
@dataclass(frozen=True)
class Frame(PositionDesign):
    """One index per frame: s + a f on all axes; next the last + 1."""

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        time = cells.time()
        return (time, time, time), cells.last_time() + 1


@POSITIONS.register("tad")
@dataclass(frozen=True)
class Tad(PositionDesign):
    """TAD-RoPE (Temporal-Aware Dual RoPE, as in VideoRoPE's code): sequential + frame.

    Text is counted in both, so it advances by 2.
    Deviates: rope_deltas continue the sum; the released code returns those of the frame part.
    """

    text_step = 2
    scalable = False

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        both = _index(cells) + cells.f
        return (both, both, both), cells.frames * (cells.rows * cells.columns + 1)


@POSITIONS.register("corner")
@dataclass(frozen=True)
class Corner(PositionDesign):
    """M-RoPE (2409.12191): (s + a f, s + y, s + x), each times its stride; next the largest + 1.

    Deviates: transformers 5.3 and later restart the text at s + max(H, W) (`corner_hf5`); checkpoints were trained on
    this rule. MM-RoPE (2507.08801) uses strides such as (4, 8, 8).
    """

    strides: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.strides) != 3:
            raise ValueError(f"positions {self.kind}: strides is {self.strides!r}; expected three numbers (t, h, w)")
        positive(f"positions {self.kind}", "strides", *self.strides)
        object.__setattr__(self, "strides", tuple(float(stride) for stride in self.strides))

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        t, h, w = self.strides
        largest = (cells.last_time() * t).maximum((cells.rows - 1) * h).maximum((cells.columns - 1) * w)
        return (cells.time() * t, cells.y * h, cells.x * w), largest + 1


@POSITIONS.register("corner_hf5")
@dataclass(frozen=True)
class CornerHf5(PositionDesign):
    """corner as transformers 5.3 to 5.23 index it: the text after a block resumes at s + max(H, W), whatever T.

    Deviates: rope_deltas continue the row's last index; the stock ones jump to the largest position + 1.
    """

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        return (cells.time(), cells.y, cells.x), cells.rows.maximum(cells.columns)


@POSITIONS.register("corner_time")
@dataclass(frozen=True)
class CornerTime(PositionDesign):
    """Qwen2.5-VL (2502.13923): corner with t = s + floor(a f), a from seconds; next the largest + 1."""

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        # The product is rounded to float32 before the floor, as in transformers: 5 * 1.2 seconds is 6, not 5.99.
        last_time = cells.last_time().float().floor().double()
        largest = last_time.maximum(cells.rows - 1).maximum(cells.columns - 1)
        return (cells.time().floor(), cells.y, cells.x), largest + 1


@POSITIONS.register("diagonal")
@dataclass(frozen=True)
class Diagonal(PositionDesign):
    """VideoRoPE (2502.05173, "Diagonal Layout") and HoPE: t = s + a f, h = t + y - (H-1)//2, w = t + x - (W-1)//2.

    next = last t + 1: h and w are ignored, as in the released code.
    Deviates: the formula of 2505.20444 ("Dynamic Temporal Scaling") gives L_t + gamma L_v; they agree for gamma = 1.
    """

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        time = cells.time()
        row = cells.y - cells.spread((cells.rows - 1) // 2)
        column = cells.x - cells.spread((cells.columns - 1) // 2)
        return (time, row.add_(time), column.add_(time)), cells.last_time() + 1


@POSITIONS.register("spatial_reset")
@dataclass(frozen=True)
class SpatialReset(Corner):
    """MRoPE-I, MHRoPE (2510.23095), IL-RoPE, OmniRoPE: (s + a f, y, x); next as corner, had h and w not been reset."""

    anchored = (True, False, False)


@POSITIONS.register("small_step")
@dataclass(frozen=True)
class SmallStep(PositionDesign):
    """V2PE (2412.09616): every visual token advances by the factor a; text resumes at ceil(last) + 1.

    `span` gives all tokens of a block together that many positions instead (times a), as a later released code does.
    """

    span: float | None = None

    def __post_init__(self) -> None:
        if self.span is not None:
            positive("positions small_step", "span", self.span)

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        size = cells.frames * cells.rows * cells.columns
        step = cells.factor if self.span is None else cells.factor * self.span / size
        # The step leads to a token, so the first visual token sits one step after the last text token.
        index = (_index(cells) + 1).double() * step[cells.block] - 1
        return (index, index, index), (size * step).ceil()


@POSITIONS.register("symmetric")
@dataclass(frozen=True)
class Symmetric(PositionDesign):
    """VRoPE (2502.11664): four indices (x+y, x-y, -x-y, y-x), each shifted to start at 0, + a f (H+W-1).

    Three are stored as t, h, w; the fourth is t - h + w of them, for text too.
    """

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        rows, columns = cells.spread(cells.rows), cells.spread(cells.columns)
        time = cells.time() * (rows + columns - 1)
        right = cells.x + cells.y
        first = time + right
        second = time + cells.x - cells.y + rows - 1
        third = time - right + rows + columns - 2
        return (first, second, third), (cells.last_time() + 1) * (cells.rows + cells.columns - 1)


@POSITIONS.register("ring")
@dataclass(frozen=True)
class Ring(PositionDesign):
    """CircleRoPE (2505.16416): a frame's tokens on a ring around the text axis (1, 1, 1), all equally far from text.

    s + R (cos phi u + sin phi v) + a f, with u = (0, 1, -1) / sqrt 2 and v = (2, -1, -1) / sqrt 6;
    phi = alpha * (atan2(y, x) stretched to 0 .. 2 pi over the frame) + (1 - alpha) * 2 pi k / (H W);
    next the largest + 1. radius None is half the longer side; `centered` takes y, x from the frame's middle; `positive`
    lifts the ring until no coordinate is below s.
    Deviates: the defaults are the paper's; the released code's (radius -1, alpha -1, not centered) stand for "not set".
    """

    radius: float | None = 10.0
    alpha: float = 0.5
    centered: bool = True
    positive: bool = False

    def __post_init__(self) -> None:
        if self.radius == 0:
            raise ValueError("positions ring: radius is 0; it must be another number, or none for half the longer side")

    def place(self, cells: Cells) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        middle = 0.5 if self.centered else 0.0
        y = cells.y - cells.spread(middle * (cells.rows - 1))
        x = cells.x - cells.spread(middle * (cells.columns - 1))
        polar = y.double().atan2(x.double())
        lowest, highest = _per_block(polar, cells, "amin"), _per_block(polar, cells, "amax")
        width = (highest - lowest).where(highest > lowest, 1.0)
        stretched = (polar - lowest[cells.block]) / width[cells.block]
        even = (cells.y * cells.spread(cells.columns) + cells.x) / cells.spread(cells.rows * cells.columns)
        phi = 2 * math.pi * (self.alpha * stretched + (1 - self.alpha) * even)
        if self.radius is None:
            radius = cells.spread((cells.rows.maximum(cells.columns) - 1) / 2)
        else:
            radius = phi.new_full(phi.shape, self.radius)
        u, v = radius * phi.cos() / math.sqrt(2), radius * phi.sin() / math.sqrt(6)
        t, h, w = 2 * v, u - v, -u - v
        if self.positive:
            lift = cells.spread(_per_block(t.minimum(h).minimum(w), cells, "amin"))
            t, h, w = t - lift, h - lift, w - lift
        largest = _per_block(t.maximum(h).maximum(w), cells, "amax") + cells.last_time()
        time = cells.time()
        return (t + time, h + time, w + time), largest + 1


def _per_block(value: Tensor, cells: Cells, reduce: str) -> Tensor:
    """The extreme value (K,) over a block's tokens (N,)."""
    empty = value.new_zeros(len(cells.frames))
    return empty.scatter_reduce(0, cells.block.long(), value, reduce, include_self=False)
