"""The built-in study's data: films of moving shapes, and needles that show a digit inside a coloured border.

F frames, H = W = size in pixels, last axis RGB, uint8. A *cell* is two frames, one temporal patch of the model.
"""

import json
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES_PER_CELL = 2

MARKERS: dict[str, tuple[int, int, int]] = {
    "red": (230, 25, 35),
    "green": (30, 180, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 225, 30),
    "cyan": (40, 220, 230),
    "magenta": (220, 40, 215),
    "orange": (245, 135, 20),
    "white": (245, 245, 245),
}
VALUES = tuple("0123456789")

# Training and evaluation draw from different branches of the seed, so that no picture of one appears in the other.
_TRAINING, _EVALUATION = 0, 1


def haystack_frames(rng: np.random.Generator, num_frames: int, size: int) -> np.ndarray:
    """Scenes of 8 to 40 frames, (F, H, W, 3) uint8: a gradient of two random colours, 1 to 3 moving shapes, noise."""
    scenes: list[np.ndarray] = []
    remaining = num_frames
    while remaining > 0:
        length = min(int(rng.integers(8, 41)), remaining)
        scenes.append(_scene(rng, length, size))
        remaining -= length
    return np.concatenate(scenes) if scenes else np.empty((0, size, size, 3), np.uint8)


def needle_frame(rng: np.random.Generator, marker: str, value: str, size: int) -> np.ndarray:
    """One rendering of a needle, (H, W, 3) uint8: `value` in each quadrant, white on dark, in a border of `marker`."""
    border = size // 8
    darkness = int(rng.integers(10, 30))
    canvas = Image.new("RGB", (size, size), MARKERS[marker])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((border, border, size - border - 1, size - border - 1), fill=(darkness,) * 3)
    font = ImageFont.load_default(size=0.36 * size)
    inner = size - 2 * border
    brightness = int(rng.integers(230, 256))
    for row in (0.22, 0.72):  # the font's middle lies below a digit's
        for column in (0.25, 0.75):
            centre = (border + column * inner, border + row * inner)
            draw.text(centre, value, fill=(brightness,) * 3, font=font, anchor="mm")
    noise = rng.normal(0.0, 6.0, size=(size, size, 3))
    return _to_uint8(np.asarray(canvas, dtype=np.float32) + noise)


def encode_mp4(path: Path, frames: np.ndarray, *, fps: float) -> None:
    """Write `frames` (F, H, W, 3) uint8 as H.264 (libx264, crf 23, veryfast, yuv420p, key frame every 16)."""
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        # On frames this small x264's lookahead (B-frames, macroblock tree, weights, scene cuts) reads memory that it
        # never wrote, and the same frames gave other bytes in one clip of forty. Without it they never did.
        lookahead_off = "weightp=0:mbtree=0:rc-lookahead=0:scenecut=0"
        options = {"crf": "23", "preset": "veryfast", "g": "16", "bf": "0", "x264-params": lookahead_off}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes then do not depend on the machine's cores
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_training_set(
    out_dir: Path,
    *,
    num_videos: int,
    cells_min: int = 8,
    cells_max: int = 16,
    num_needles: int = 8,
    num_twins: int = 3,
    seed: int = 0,
    size: int = 32,
    fps: float = 2.0,
    num_renderings: int = 6,
) -> None:
    """Write `num_videos` short clips and `train.json` in LLaVA-Video-178K's format.

    Every clip has cells_min..cells_max cells, of which `num_needles` lie at random cells. `num_twins` markers appear on
    two of them, with different values, and are asked for by their order in time ("first red", "last red"); the other
    needles are asked for by marker alone ("find blue"). The order of the turns is random.
    """
    if not 0 <= num_twins <= num_needles // 2:
        raise ValueError(
            f"num_twins is {num_twins}; {num_needles} needles allow 0 to {num_needles // 2} pairs of twins"
        )
    if not 1 <= num_needles <= min(len(MARKERS), cells_min):
        limit = min(len(MARKERS), cells_min)
        raise ValueError(f"num_needles is {num_needles}; a clip of {cells_min} cells holds 1 to {limit} of them")
    if cells_max < cells_min:
        raise ValueError(f"cells_max is {cells_max}, below cells_min {cells_min}")
    (out_dir / "videos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, _TRAINING])
    haystacks = [haystack_frames(rng, 160, size) for _ in range(24)]
    needles = _renderings(rng, num_renderings, size)
    records = []
    for number in range(num_videos):
        num_cells = int(rng.integers(cells_min, cells_max + 1))
        source = haystacks[rng.integers(len(haystacks))]
        start = int(rng.integers(len(source) - FRAMES_PER_CELL * num_cells + 1))
        frames = source[start : start + FRAMES_PER_CELL * num_cells].copy()
        cells = np.sort(rng.choice(num_cells, num_needles, replace=False))
        markers = draw_markers(rng, num_needles, num_twins)
        values = draw_values(rng, markers)
        for cell, marker, value in zip(cells, markers, values, strict=True):
            frames[FRAMES_PER_CELL * cell : FRAMES_PER_CELL * (cell + 1)] = needles[marker, value][
                rng.integers(num_renderings)
            ]
        video = f"videos/{number:05d}.mp4"
        encode_mp4(out_dir / video, frames, fps=fps)
        questions = list(_questions(markers, values))
        turns = [questions[i] for i in rng.permutation(len(questions))]
        records.append(
            {
                "id": f"{number:05d}",
                "conversations": _conversation(turns),
                "data_source": "synthetic_needles",
                "video": video,
            }
        )
    _write_records(out_dir / "train.json", records)


def write_needle_benchmark(
    out_dir: Path,
    *,
    num_films: int,
    film_frames: int,
    seed: int = 0,
    size: int = 32,
    fps: float = 2.0,
    num_renderings: int = 3,
) -> None:
    """Write V-NIAH's two parts: `haystack/*.mp4` and needle pictures with `needles.json`.

    A needle's record is LongVA's {"path", "prompt", "answer"} with its "marker", "value" and "rendering" beside. No
    film and no needle picture is shared with `write_training_set`, whatever the seed.
    """
    (out_dir / "haystack").mkdir(parents=True, exist_ok=True)
    (out_dir / "needles").mkdir(exist_ok=True)
    rng = np.random.default_rng([seed, _EVALUATION])
    for number in range(num_films):
        encode_mp4(out_dir / "haystack" / f"{number:03d}.mp4", haystack_frames(rng, film_frames, size), fps=fps)
    records = []
    for (marker, value), pictures in _renderings(rng, num_renderings, size).items():
        for rendering, picture in enumerate(pictures):
            path = f"needles/{marker}_{value}_{rendering}.png"
            Image.fromarray(picture).save(out_dir / path)
            records.append(
                {
                    "path": path,
                    "prompt": f"find {marker}",
                    "answer": value,
                    "marker": marker,
                    "value": value,
                    "rendering": rendering,
                }
            )
    _write_records(out_dir / "needles.json", records)


def draw_markers(rng: np.random.Generator, num_needles: int, num_twins: int) -> list[str]:
    """Draw the markers of `num_needles` needles in time order; `num_twins` of the markers stand on two needles."""
    distinct = [str(name) for name in rng.permutation(list(MARKERS))[: num_needles - num_twins]]
    return [str(name) for name in rng.permutation(distinct + distinct[:num_twins])]


def draw_values(rng: np.random.Generator, markers: Sequence[str]) -> list[str]:
    """Draw a digit for each needle; needles of one marker never share it, so their order decides the answer."""
    values: list[str] = []
    for position, marker in enumerate(markers):
        taken = {values[i] for i in range(position) if markers[i] == marker}
        values.append(str(rng.choice([value for value in VALUES if value not in taken])))
    return values


def _scene(rng: np.random.Generator, num_frames: int, size: int) -> np.ndarray:
    first, second = rng.uniform(0, 255, size=(2, 3)).astype(np.float32)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.cos(angle) * columns + math.sin(angle) * rows
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    frames = np.broadcast_to(
        first + ramp[..., None] * (second - first), (num_frames, size, size, 3)
    ).copy()  # (F, H, W, 3)
    time = np.arange(num_frames, dtype=np.float32)[:, None, None]
    for _ in range(rng.integers(1, 4)):
        x, y = (
            rng.uniform(0, size) + rng.uniform(-size / 20, size / 20) * time for _ in range(2)
        )  # centre of each frame, (F, 1, 1)
        radius = rng.uniform(size / 12, size / 4)
        across, down = np.abs(columns - x % size), np.abs(rows - y % size)
        inside = (across**2 + down**2 < radius**2) if rng.random() < 0.5 else (np.maximum(across, down) < radius)
        frames[inside] = rng.uniform(0, 255, size=3)
    frames += 4.0 * rng.standard_normal((num_frames, size, size, 1), dtype=np.float32)
    return _to_uint8(frames)


def _renderings(rng: np.random.Generator, num_renderings: int, size: int) -> dict[tuple[str, str], np.ndarray]:
    """(R, H, W, 3) pictures of every marker and value."""
    return {
        (marker, value): np.stack([needle_frame(rng, marker, value, size) for _ in range(num_renderings)])
        for marker in MARKERS
        for value in VALUES
    }


def _questions(markers: Sequence[str], values: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, (marker, value) in enumerate(zip(markers, values, strict=True)):
        if markers.count(marker) == 1:
            yield f"find {marker}", value
        else:
            yield f"{'first' if markers.index(marker) == position else 'last'} {marker}", value


def _conversation(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    messages = []
    for number, (question, answer) in enumerate(turns):
        placeholder = "<image>\n" if number == 0 else ""
        messages.append({"from": "human", "value": placeholder + question})
        messages.append({"from": "gpt", "value": answer})
    return messages


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _write_records(path: Path, records: Sequence[dict]) -> None:
    """A JSON array with one record a line, so that a reader's line numbers tell the record."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")
