"""Batches to try: spans -> token ids, grids, mask; and positions of them by a slow, obvious walk (no tensors)."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hope_core import VisionTokens

TOKENS = VisionTokens(vision_start=92, vision_end=93, image=90, video=91)

Span = tuple[Any, ...]  # ("text", n), ("image", H, W) or ("video", T, H, W); H and W after merging


@dataclass(frozen=True)
class Batch:
    """Rows of spans with padding. wrap: vision_start and vision_end (text tokens) around every block."""

    rows: list[list[Span]]
    pads: list[tuple[int, int]]
    wrap: bool
    merge: int = 2
    inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        lines, masks = [], []
        grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
        for spans, (left, right) in zip(self.rows, self.pads, strict=True):
            ids = self.ids(spans)
            lines.append([0] * left + ids + [0] * right)
            masks.append([0] * left + [1] * len(ids) + [0] * right)
            for kind, *shape in spans:
                if kind != "text":
                    frames, height, width = shape if kind == "video" else (1, *shape)
                    grids[kind].append((frames, height * self.merge, width * self.merge))
        length = max(map(len, lines))
        whole = all(len(line) == length and all(mask) for line, mask in zip(lines, masks, strict=True))
        inputs = {
            "input_ids": torch.tensor([line + [0] * (length - len(line)) for line in lines]),
            "attention_mask": None if whole else torch.tensor([m + [0] * (length - len(m)) for m in masks]),
            "image_grid_thw": torch.tensor(grids["image"]) if grids["image"] else None,
            "video_grid_thw": torch.tensor(grids["video"]) if grids["video"] else None,
            "tokens": TOKENS,
            "spatial_merge_size": self.merge,
        }
        object.__setattr__(self, "inputs", inputs)

    def ids(self, spans: list[Span]) -> list[int]:
        ids: list[int] = []
        for kind, *shape in spans:
            if kind == "text":
                ids += [5] * shape[0]
            else:
                block = [TOKENS.image if kind == "image" else TOKENS.video] * math.prod(shape)
                ids += [TOKENS.vision_start, *block, TOKENS.vision_end] if self.wrap else block
        return ids

    @property
    def mask(self) -> torch.Tensor:
        mask = self.inputs["attention_mask"]
        return torch.ones_like(self.inputs["input_ids"]) if mask is None else mask

    @property
    def num_items(self) -> int:
        return sum(span[0] != "text" for spans in self.rows for span in spans)

    @property
    def num_videos(self) -> int:
        return sum(span[0] == "video" for spans in self.rows for span in spans)


def spans() -> st.SearchStrategy[Span]:
    side = st.integers(1, 4)
    return st.one_of(
        st.tuples(st.just("text"), st.integers(1, 5)),
        st.tuples(st.just("image"), side, side),
        st.tuples(st.just("video"), st.integers(1, 6), side, side),
    )


@st.composite
def batches(draw: Any) -> Batch:
    rows = draw(st.lists(st.lists(spans(), min_size=1, max_size=5), min_size=1, max_size=3))
    pads = [draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in rows]
    return Batch(rows, pads, wrap=draw(st.booleans()), merge=draw(st.sampled_from([1, 2])))


def walk(kind: str, spans: list[Span], factors: list[float], wrap: bool) -> tuple[list[tuple[float, ...]], float]:
    """Every token's (t, h, w) and the next index, one token after the other; factors: one per visual span."""
    places: list[tuple[Any, ...]] = []
    at: Any = 0
    left = list(factors)

    def text(number: int) -> None:
        nonlocal at
        for _ in range(number):
            places.append((at, at, at))
            at += 2 if kind == "tad" else 1

    for what, *shape in spans:
        if what == "text":
            text(shape[0])
            continue
        frames, rows, columns = shape if what == "video" else (1, *shape)
        text(int(wrap))
        block, at = place(kind, at, frames, rows, columns, Fraction(left.pop(0)))
        places += block
        text(int(wrap))
    return [tuple(float(p) for p in spot) for spot in places], float(at)


def place(kind: str, s: Any, frames: int, rows: int, columns: int, a: Fraction) -> tuple[list[tuple[Any, ...]], Any]:
    """A block's tokens and the next index, by the table of position designs."""
    spots: list[tuple[Any, ...]] = []
    corner: list[tuple[Any, ...]] = []
    for f in range(frames):
        for y in range(rows):
            for x in range(columns):
                k = (f * rows + y) * columns + x
                t = s + a * f
                corner.append((t, s + y, s + x))
                spots.append(
                    {
                        "sequential": lambda s=s, k=k: (s + k,) * 3,
                        "frame": lambda t=t: (t,) * 3,
                        "tad": lambda s=s, k=k, f=f: (s + k + f,) * 3,
                        "corner": lambda t=t, s=s, y=y, x=x: (t, s + y, s + x),
                        "corner_hf5": lambda t=t, s=s, y=y, x=x: (t, s + y, s + x),
                        "corner_time": lambda s=s, f=f, y=y, x=x: (s + seconds(f, a), s + y, s + x),
                        "diagonal": lambda t=t, y=y, x=x: (t, t + y - (rows - 1) // 2, t + x - (columns - 1) // 2),
                        "spatial_reset": lambda t=t, y=y, x=x: (t, y, x),
                        "small_step": lambda s=s, k=k: (s - 1 + a * (k + 1),) * 3,
                        "symmetric": lambda s=s, f=f, y=y, x=x: (
                            s + x + y + a * f * (rows + columns - 1),
                            s + x - y + rows - 1 + a * f * (rows + columns - 1),
                            s - x - y + rows + columns - 2 + a * f * (rows + columns - 1),
                        ),
                        "ring": lambda t=t, y=y, x=x: tuple(t + r for r in ring(y, x, rows, columns)),
                    }[kind]()
                )
    largest = max(max(spot) for spot in spots)
    after = {
        "tad": s + frames * rows * columns + frames,
        "corner_hf5": s + max(rows, columns),
        "diagonal": s + a * (frames - 1) + 1,
        "frame": s + a * (frames - 1) + 1,
        "spatial_reset": max(max(spot) for spot in corner) + 1,
        "small_step": math.ceil(largest) + 1,
        # the fourth index is not stored, but it is as large as the others
    }
    return spots, after.get(kind, largest + 1)


def seconds(f: int, a: Fraction) -> int:
    """floor(a f) in float32, as transformers has it."""
    return int(np.floor(np.float32(f) * np.float32(float(a))))


def ring(y: int, x: int, rows: int, columns: int) -> tuple[float, float, float]:
    """CircleRoPE with radius 10 and alpha 1/2, relative to the ring's middle."""

    def polar(y: int, x: int) -> float:
        return math.atan2(y - (rows - 1) / 2, x - (columns - 1) / 2)

    every = [polar(i, j) for i in range(rows) for j in range(columns)]
    width = max(every) - min(every)
    stretched = (polar(y, x) - min(every)) / width if width else 0.0
    phi = math.pi * stretched + math.pi * (y * columns + x) / (rows * columns)
    u, v = 10 * math.cos(phi) / math.sqrt(2), 10 * math.sin(phi) / math.sqrt(6)
    return (2 * v, u - v, -u - v)
