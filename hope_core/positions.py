"""Positions of every token of a batch.

Shapes: B rows, S tokens per row, R real tokens, K visual blocks, N visual tokens; three rows t, h, w.
A row's real tokens are walked with a running index: a text token takes it on all axes and advances it, a visual block
starts at it and advances it by the extent its design gives. Everything is done for the whole batch at once: the running
index is a cumulative sum with all of a block's advance on its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hope_core.designs import Cells
from hope_core.scaling import AbsoluteTime, Dynamic
from hope_core.segments import Block, VisionTokens, find_blocks

if TYPE_CHECKING:
    from hope_core.variants import Variant


@dataclass(frozen=True)
class Positions:
    """position_ids float32 (3, B, S), padding 0; rope_deltas float32 (B, 1): next index - number of real tokens.

    scales: the temporal factor of every image and video in batch order, as used.
    """

    position_ids: Tensor
    rope_deltas: Tensor
    scales: tuple[float, ...]


def compute_positions(
    variant: Variant,
    input_ids: Tensor,
    *,
    tokens: VisionTokens,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    attention_mask: Tensor | None = None,
    spatial_merge_size: int = 2,
    seconds_per_frame: float | Sequence[float] | Tensor | None = None,
    scales: float | Sequence[float] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Positions:
    """Positions of a batch under a variant.

    input_ids (B, S); grids (number, 3) as (T, H, W) before merging, in batch order; attention_mask (B, S), 1 real.
    seconds_per_frame: seconds per temporal grid cell, one number or one per video in batch order, for absolute_time.
    scales: the temporal factor, one number or one per image and video in batch order; it replaces the variant's own.
    Without it a dynamic variant draws one factor per image and video from `generator`.

    Raises ValueError for grids that do not match the tokens, a block with too few tokens, scales or seconds of the
    wrong number, a mask of another shape, a dynamic variant with neither scales nor generator.

    Deviates: transformers 5.3 to 5.23 restart the text after a video at s + max(H, W); every design here continues
    after the block as its paper does. Padding keeps 0 (4.x: 1).
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (rows, tokens)")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; input_ids has {tuple(input_ids.shape)}"
        )
    device = input_ids.device
    num_rows, length = input_ids.shape
    ids = input_ids.reshape(-1)
    real = None if attention_mask is None else attention_mask.to(torch.bool)
    if real is None or bool(real.all()):
        real, cell_of, row_lengths = None, None, [length] * num_rows
    else:
        cell_of = real.reshape(-1).nonzero().squeeze(1)  # place in the flattened batch of every real token
        ids, row_lengths = ids[cell_of], real.sum(1).tolist()
    blocks, num_items = find_blocks(
        ids,
        row_lengths,
        tokens=tokens,
        image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw,
        spatial_merge_size=spatial_merge_size,
    )
    factors = _factors(variant, blocks, num_items, scales, seconds_per_frame, generator)

    design = variant.positions
    advance = torch.full((num_rows, length), float(design.text_step), dtype=torch.float64, device=device)
    if real is not None:
        advance *= real
    if blocks:
        first = torch.tensor([block.first for block in blocks], device=device)
        size = torch.tensor([block.size for block in blocks], device=device)
        cells, where = _cells(blocks, [factors[block.item] for block in blocks], first, size)
        last = first + size - 1
        if cell_of is not None:
            where, last = cell_of[where], cell_of[last]
        offsets, extent = design.place(cells)
        del cells
        advance.view(-1)[where] = 0
        advance.view(-1)[last] = extent
    start = advance.cumsum(1).sub_(advance)
    position_ids = start.to(torch.float32).view(-1).repeat(3, 1)
    if blocks:
        block_start = start.view(-1)[where]
        for axis, (offset, anchored) in enumerate(zip(offsets, design.anchored, strict=True)):
            position_ids[axis, where] = (block_start + offset).to(torch.float32) if anchored else offset
        if variant.frequencies.hides_time:
            position_ids[0, where] = 0
    position_ids = position_ids.view(3, num_rows, length)
    if real is not None:
        position_ids *= real
    num_real = torch.tensor(row_lengths, device=device)
    rope_deltas = (advance.sum(1) - num_real).to(torch.float32)[:, None]
    return Positions(position_ids, rope_deltas, tuple(factors))


def _cells(blocks: list[Block], factors: list[float], first: Tensor, size: Tensor) -> tuple[Cells, Tensor]:
    """The visual tokens of all blocks, and which of the real tokens (N,) they are."""
    device = first.device
    shape = torch.tensor([(block.frames, block.rows, block.columns) for block in blocks], device=device)
    rows, columns = shape[:, 1].to(torch.int32), shape[:, 2].to(torch.int32)
    block = torch.repeat_interleave(torch.arange(len(blocks), dtype=torch.int32, device=device), size)
    where = torch.arange(len(block), dtype=torch.int32, device=device)
    index = where - (size.cumsum(0) - size).to(torch.int32)[block]
    line = index // columns[block]
    frame = line // rows[block]
    number = shape.to(torch.float64)
    cells = Cells(
        f=frame.to(torch.float32),
        y=(line - frame * rows[block]).to(torch.float32),
        x=(index - line * columns[block]).to(torch.float32),
        block=block,
        frames=number[:, 0],
        rows=number[:, 1],
        columns=number[:, 2],
        factor=torch.tensor(factors, dtype=torch.float64, device=device),
    )
    return cells, index + first.to(torch.int32)[block]


def _factors(
    variant: Variant,
    blocks: list[Block],
    num_items: int,
    scales: float | Sequence[float] | Tensor | None,
    seconds_per_frame: float | Sequence[float] | Tensor | None,
    generator: torch.Generator | None,
) -> list[float]:
    """The temporal factor of every image and video."""
    if isinstance(variant.scaling, AbsoluteTime):
        videos = sorted({block.item for block in blocks if block.video})
        if videos and seconds_per_frame is None:
            raise ValueError(
                f"{variant.name}: scaling absolute_time needs seconds_per_frame, one number or one per video"
            )
        seconds = _one_each("seconds_per_frame", seconds_per_frame, len(videos), "videos") if videos else []
        factors = [1.0] * num_items
        for item, value in zip(videos, seconds, strict=True):
            factors[item] = value * variant.scaling.tokens_per_second
    elif isinstance(variant.scaling, Dynamic):
        if scales is not None:
            factors = [1.0] * num_items
        elif generator is not None:
            choices = variant.scaling.choices
            drawn = torch.randint(len(choices), (num_items,), generator=generator, device=generator.device)
            factors = [choices[i] for i in drawn.tolist()]
        elif num_items:
            raise ValueError(
                f"{variant.name}: dynamic scaling has no factor here; for inference use variant.at_scale(a), "
                f"for training pass scales=draw_scales(...) or a generator"
            )
        else:
            factors = []
    else:
        assert variant.factor is not None, "only dynamic and absolute_time have no factor of their own"
        factors = [variant.factor] * num_items
    if scales is None:
        return factors
    given = _one_each("scales", scales, num_items, "images and videos")
    if not variant.scalable and any(value != 1 for value in given):
        raise ValueError(f"{variant.name}: scales {given} have no effect on it ({variant.unscalable_because})")
    return given if variant.scalable else factors


def _one_each(name: str, value: float | Sequence[float] | Tensor | None, number: int, of: str) -> list[float]:
    values = torch.as_tensor(value, dtype=torch.float64)
    given = [float(values)] * number if values.ndim == 0 else values.flatten().tolist()
    if len(given) != number:
        raise ValueError(f"{name} has {len(given)} numbers; the batch holds {number} {of}")
    if any(not 0 < factor < float("inf") for factor in given):
        raise ValueError(f"{name} is {given}; every factor must be a finite number above zero")
    return given
