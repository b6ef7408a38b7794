"""The frame budget: which frames of a video are kept, at what size, and how they become the model's patch rows.

F sampled frames, H and W pixels, T = F / temporal_patch_size grid cells, R = T * (H / patch) * (W / patch) patch rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLERS = ("endpoints", "stride")

# OpenAI CLIP's statistics, which Qwen2-VL and Qwen2.5-VL use, per RGB channel.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class UnusableShape(ValueError):
    """A frame so long and thin that no size within the budget keeps its shape."""


@dataclass(frozen=True, kw_only=True)
class FrameBudget:
    """What a video may cost. Sizes follow Qwen2-VL's reference; the defaults are its own.

    `total_pixels` is shared by all cells of a video (its frames, two by two); `min_pixels` and `max_pixels` bound one
    frame, `image_min_pixels` and `image_max_pixels` a picture. `frame_size` (height, width) overrides them all.
    Samplers: "endpoints" spreads the frames from the first to the last (qwen-vl-utils), "stride" takes one every
    total / num_frames (transformers).
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    total_pixels: int = 24576 * 28 * 28
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    image_min_pixels: int = 56 * 56
    image_max_pixels: int = 28 * 28 * 1280
    frame_size: tuple[int, int] | None = None
    sampler: str = "endpoints"
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; allowed are {', '.join(SAMPLERS)}")
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; it must be above 0")
        for name in ("min_frames", "max_frames"):
            if getattr(self, name) < 1 or getattr(self, name) % self.temporal_patch_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; use a multiple of temporal_patch_size {self.temporal_patch_size}"
                )
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames {self.min_frames} is above max_frames {self.max_frames}")
        if self.frame_size and any(side < 1 or side % self.factor for side in self.frame_size):
            raise ValueError(f"frame_size is {self.frame_size}; both sides must be multiples of {self.factor}")

    @property
    def factor(self) -> int:
        """Pixels on the side of one token: both sides of a resized frame are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch row."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def sample_indices(num_source_frames: int, source_fps: float, budget: FrameBudget) -> np.ndarray:
    """Indices of the frames to keep, int64, ascending; a multiple of temporal_patch_size of them.

    A video shorter than one temporal patch keeps all its frames (`patchify` repeats the last one), where the reference
    refuses it.
    """
    if num_source_frames < budget.temporal_patch_size:
        return np.arange(num_source_frames)
    wanted = num_source_frames / source_fps * budget.fps
    wanted = min(max(wanted, budget.min_frames), budget.max_frames, num_source_frames)
    num_frames = math.floor(wanted / budget.temporal_patch_size) * budget.temporal_patch_size
    if budget.sampler == "endpoints":
        return np.rint(np.linspace(0, num_source_frames - 1, num_frames)).astype(np.int64)
    return (np.arange(num_frames) * (num_source_frames / num_frames)).astype(np.int64)


def video_frame_size(height: int, width: int, num_frames: int, budget: FrameBudget) -> tuple[int, int]:
    """Height and width that `num_frames` frames of a video are resized to."""
    if budget.frame_size:
        return budget.frame_size
    share = budget.total_pixels / num_frames * budget.temporal_patch_size
    most = max(min(budget.max_pixels, share), int(budget.min_pixels * 1.05))
    return smart_resize(height, width, factor=budget.factor, min_pixels=budget.min_pixels, max_pixels=most)


def image_size(height: int, width: int, budget: FrameBudget) -> tuple[int, int]:
    """Height and width that a picture is resized to."""
    if budget.frame_size:
        return budget.frame_size
    return smart_resize(
        height,
        width,
        factor=budget.factor,
        min_pixels=budget.image_min_pixels,
        max_pixels=budget.image_max_pixels,
    )


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """The nearest size whose sides are multiples of `factor` and whose area is within the limits (Qwen2-VL)."""
    if max(height, width) > 200 * min(height, width):
        raise UnusableShape(f"{width}x{height} is longer than 200 times its width; crop it")
    sides = np.array([height, width])
    rounded = np.rint(sides / factor) * factor
    if rounded.prod() > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = np.maximum(factor, np.floor(sides / shrink / factor) * factor)
    elif rounded.prod() < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = np.ceil(sides * grow / factor) * factor
    return int(rounded[0]), int(rounded[1])


def patchify(frames: np.ndarray, budget: FrameBudget) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut frames (F, H, W, 3) uint8 into rows (R, patch_dim) uint8, and give the grid (T, H/patch, W/patch).

    Rows go cell by cell, then token by token (merge x merge patches together); a row holds channel, frame, y, x, as
    Qwen2VLVideoProcessor lays it out. The last frame is repeated to fill the last temporal patch.
    """
    p, m, t = budget.patch_size, budget.merge_size, budget.temporal_patch_size
    if missing := -len(frames) % t:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    num_frames, height, width = frames.shape[:3]
    grid = (num_frames // t, height // p, width // p)
    # A patch's line of p pixels is copied as one item, and its channels are told apart a cell at a time, in the
    # processor's cache: half the time of one transpose.
    lines = frames.reshape(num_frames, height, width * 3).view(f"V{3 * p}")
    cells = lines.reshape(grid[0], t, grid[1] // m, m, p, grid[2] // m, m)
    rows = np.empty((grid[0], grid[1] * grid[2], 3, t * p * p), np.uint8)
    for cell, cell_rows in zip(cells, rows, strict=True):
        # token row, token column, patch row, patch column | frame, y
        pixels = np.ascontiguousarray(cell.transpose(1, 4, 2, 5, 0, 3)).view(np.uint8)
        cell_rows[:] = pixels.reshape(-1, t * p * p, 3).transpose(0, 2, 1)
    return rows.reshape(-1, budget.patch_dim), grid


def normalise(
    rows: np.ndarray, image_mean: Sequence[float] = CLIP_MEAN, image_std: Sequence[float] = CLIP_STD
) -> np.ndarray:
    """Stored rows (R, patch_dim) uint8 to the float32 that the vision tower reads (rescaled, mean and std per channel).

    Qwen3-VL's towers have statistics of their own, in preprocessor_config.json.
    """
    channels = rows.reshape(len(rows), 3, -1).astype(np.float32)
    mean = np.asarray(image_mean, np.float32)[:, None] * 255
    std = np.asarray(image_std, np.float32)[:, None] * 255
    return ((channels - mean) / std).reshape(len(rows), -1)
