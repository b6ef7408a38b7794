"""Token ids and grids -> visual blocks.

Shapes: B rows, S tokens per row, K visual blocks, N visual tokens. A block is one unbroken run of visual tokens with a
T x H x W grid (after spatial merging); an item is one image or video, that is one line of the grids. They are the same
except where every frame of a video stands alone between timestamps (Qwen3-VL): then one item is T blocks of one frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisionTokens:
    """Special token ids. vision_start and vision_end are text; only image and video tokens are visual."""

    vision_start: int
    vision_end: int
    image: int
    video: int


@dataclass(frozen=True)
class Block:
    """One run of visual tokens: `first` counts the batch's real tokens, `item` its images and videos in batch order."""

    first: int
    item: int
    video: bool
    frames: int
    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.frames * self.rows * self.columns


def find_blocks(
    ids: Tensor,
    row_lengths: list[int],
    *,
    tokens: VisionTokens,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    spatial_merge_size: int,
) -> tuple[list[Block], int]:
    """Cut a batch's real tokens into visual blocks; returns them with the number of items.

    ids (R,): the real tokens of all rows, one row after the other; row_lengths: how many each row has.
    A run of visual tokens takes as many grids as fill it, so images or videos may also touch.
    Raises ValueError when tokens and grids do not match: a missing or left-over grid, a block with tokens too few.
    """
    grids = {
        "image": _merged("image", image_grid_thw, spatial_merge_size),
        "video": _merged("video", video_grid_thw, spatial_merge_size),
    }
    used = {"image": 0, "video": 0}
    blocks: list[Block] = []
    item = 0
    frame_by_frame: tuple[int, int, int] | None = None  # frames still to come, their row in the batch, their grid

    for kind, row, first, length in _runs(ids, row_lengths, tokens):
        at = first
        left = length
        while left:
            if frame_by_frame and kind == "video":
                missing, in_row, index = frame_by_frame
                frames, rows, columns = grids[kind][index]
                if left != rows * columns or row != in_row:
                    raise ValueError(
                        f"row {row}: video frame of {left} tokens; video grid {index} ({frames} x {rows} x {columns}) "
                        f"still needs {missing} frames of {rows * columns} tokens in row {in_row}"
                    )
                blocks.append(Block(at, item, True, 1, rows, columns))
                frame_by_frame = (missing - 1, row, index) if missing > 1 else None
                item += frame_by_frame is None
                break
            index = used[kind]
            if index == len(grids[kind]):
                raise ValueError(
                    f"row {row}: {kind} block of {length} tokens; the grids before it are used up and {kind}_grid_thw "
                    f"has {index} rows, so {left} tokens have no grid"
                )
            frames, rows, columns = grids[kind][index]
            used[kind] += 1
            size = frames * rows * columns
            if left >= size:
                blocks.append(Block(at, item, kind == "video", frames, rows, columns))
                item += 1
                at += size
                left -= size
            elif kind == "video" and left == rows * columns and at == first:
                blocks.append(Block(at, item, True, 1, rows, columns))
                frame_by_frame = (frames - 1, row, index)
                left = 0
            else:
                raise ValueError(
                    f"row {row}: {kind} block of {left} tokens; {kind} grid {index} needs {size} "
                    f"({frames} x {rows} x {columns} after merging {spatial_merge_size} x {spatial_merge_size})"
                )
    if frame_by_frame:
        missing, row, index = frame_by_frame
        raise ValueError(
            f"row {row}: video grid {index} still needs {missing} of its {grids['video'][index][0]} frames"
        )
    for kind, number in used.items():
        if number != len(grids[kind]):
            raise ValueError(f"{kind}_grid_thw has {len(grids[kind])} rows, the tokens hold {number} {kind} blocks")
    return blocks, item


def _runs(ids: Tensor, row_lengths: list[int], tokens: VisionTokens) -> Iterator[tuple[str, int, int, int]]:
    """(kind, row, first token, length) of every run of visual tokens."""
    label = (ids == tokens.image).to(torch.uint8) + 2 * (ids == tokens.video).to(torch.uint8)
    changes = (torch.nonzero(label[1:] != label[:-1]).squeeze(1) + 1).tolist()
    row_starts = list(accumulate(row_lengths, initial=0))
    cuts = sorted({*changes, *row_starts})
    kinds = label[torch.tensor(cuts[:-1], dtype=torch.long, device=ids.device)].tolist()
    row = 0
    for kind, first, last in zip(kinds, cuts[:-1], cuts[1:], strict=True):
        while first >= row_starts[row + 1]:
            row += 1
        if kind:
            yield ("image", "video")[kind - 1], row, first, last - first


def _merged(kind: str, grid_thw: Tensor | None, merge: int) -> list[tuple[int, int, int]]:
    if grid_thw is None:
        return []
    grid = torch.as_tensor(grid_thw)
    if grid.ndim != 2 or grid.shape[1] != 3:
        raise ValueError(f"{kind}_grid_thw has shape {tuple(grid.shape)}; expected (number of {kind}s, 3)")
    merged = []
    for frames, height, width in grid.tolist():
        if min(frames, height, width) < 1 or height % merge or width % merge:
            raise ValueError(
                f"{kind} grid ({frames}, {height}, {width}): every number must be at least 1, "
                f"height and width multiples of spatial_merge_size {merge}"
            )
        merged.append((frames, height // merge, width // merge))
    return merged
