"""Decoded videos on disk: shards of patch rows that many artifacts share, and the reader of one artifact's videos.

A cache folder holds `<shard>.npy`, uint8 (rows, patch_dim), growing by whole videos, and `<shard>.jsonl` with a line
per video, keyed by the file's content. An artifact holds hard links to the shards it needs and its own `index.jsonl`.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.video.budget import FrameBudget
from pipelines.video.decode import DECODERS, Decoded

SHARD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Frames:
    """Where one decoded file's rows lie, and what is known of it; `grid` is (T, H, W) in patches."""

    digest: str
    shard: str
    first_row: int
    grid: tuple[int, int, int]
    decoder: str
    num_frames: int
    sample_fps: float
    duration_s: float
    readable_share: float


@dataclass(frozen=True)
class Failure:
    """A file that gave no frames, and why."""

    digest: str
    reason: str


def cache_folder(cache_dir: Path, budget: FrameBudget) -> Path:
    """The folder of everything decoded within this budget by these decoders."""
    payload = json.dumps({"budget": asdict(budget), "decoders": DECODERS}, sort_keys=True)
    return cache_dir / hashlib.sha256(payload.encode()).hexdigest()[:16]


def read_cache(folder: Path) -> dict[str, Frames | Failure]:
    """What the folder holds, by content digest; not a line that a kill left torn, nor a shard that was deleted."""
    known: dict[str, Frames | Failure] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if not path.with_suffix(".npy").exists():
            continue
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                entry = from_json(json.loads(line))
                known[entry.digest] = entry
    return known


def from_json(entry: Mapping[str, Any]) -> Frames | Failure:
    if "reason" in entry:
        return Failure(**entry)
    return Frames(**{**entry, "grid": tuple(entry["grid"])})


class ShardWriter:
    """Appends videos to a shard of its own; a reader never sees half of one, whenever the process is killed."""

    def __init__(self, folder: Path, patch_dim: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._patch_dim = folder, patch_dim
        self._rows: BinaryIO | None = None

    def append(self, digest: str, decoded: Decoded, rows: np.ndarray, grid: tuple[int, int, int]) -> Frames:
        """Write `rows` (R, patch_dim) uint8, then the header that counts them, then the line that names them."""
        if self._rows is None or self._num_rows * self._patch_dim > SHARD_BYTES:
            self._open_shard()
        entry = Frames(
            digest=digest,
            shard=self._name,
            first_row=self._num_rows,
            grid=grid,
            decoder=decoded.decoder,
            num_frames=len(decoded.frames),
            sample_fps=decoded.sample_fps,
            duration_s=decoded.duration_s,
            readable_share=decoded.readable_share,
        )
        assert self._rows is not None
        self._rows.write(rows.data)
        self._rows.flush()
        # To the disk with them, and out of the page cache: a study's rows outgrow memory, and would push out the videos
        # that are still to be read and make each write wait for fresh pages.
        os.posix_fadvise(self._rows.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._num_rows += len(rows)
        self._write_header()
        self._write_line(entry)
        return entry

    def append_failure(self, failure: Failure) -> None:
        if self._rows is None:
            self._open_shard()
        self._write_line(failure)

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _open_shard(self) -> None:
        self.close()
        self._name, self._num_rows = uuid.uuid4().hex[:12], 0
        self._rows = (self._folder / f"{self._name}.npy").open("xb")
        self._write_header()

    def _write_header(self) -> None:
        """numpy pads the header so that the first axis can grow in place."""
        assert self._rows is not None
        self._rows.seek(0)
        description = {"descr": "|u1", "fortran_order": False, "shape": (self._num_rows, self._patch_dim)}
        np.lib.format.write_array_header_1_0(self._rows, description)
        self._rows.flush()
        self._rows.seek(0, 2)

    def _write_line(self, entry: Frames | Failure) -> None:
        with (self._folder / f"{self._name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


class FrameStore:
    """The decoded videos and pictures of one preprocess artifact, by id; rows are memory-mapped, never copied."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = (path / "index.jsonl").read_text(encoding="utf-8").splitlines()
        self._frames: dict[str, Frames] = {}
        for line in lines:
            entry = json.loads(line)
            media_id = entry.pop("id")
            self._frames[media_id] = Frames(**{**entry, "grid": tuple(entry["grid"])})
        self._shards: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameStore, (self._path,)  # a worker maps the shards itself; pickled memory maps would be copies

    def __contains__(self, media_id: str) -> bool:
        return media_id in self._frames

    def __iter__(self) -> Iterator[str]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def about(self, media_id: str) -> Frames:
        """Grid, decoder, durations and place of one video; an unknown id is a ValueError."""
        if media_id not in self._frames:
            raise ValueError(f"no frames of {media_id!r} in {self._path}; {len(self._frames)} videos and pictures are")
        return self._frames[media_id]

    def grid(self, media_id: str) -> tuple[int, int, int]:
        """(T, H, W) in patches; the language model sees T * H * W / merge_size**2 tokens."""
        return self.about(media_id).grid

    def rows(self, media_id: str) -> np.ndarray:
        """Patch rows (T * H * W, patch_dim) uint8, read-only; `budget.normalise` turns them into the tower's input."""
        entry = self.about(media_id)
        if entry.shard not in self._shards:
            self._shards[entry.shard] = np.load(self._path / f"{entry.shard}.npy", mmap_mode="r")
        num_rows = entry.grid[0] * entry.grid[1] * entry.grid[2]
        return self._shards[entry.shard][entry.first_row : entry.first_row + num_rows]


def open_frames(path: Path) -> FrameStore:
    """Open the artifact that the preprocess stage left at `path`."""
    return FrameStore(path)
