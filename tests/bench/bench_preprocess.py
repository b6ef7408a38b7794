"""Preprocess: the bare decoder on the same cores, memory, and what a second variant decodes

Speeds are steady ones, without the start of processes, and the best of some rounds taken in turns.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines.datasets import Media
from pipelines.engine import RayRunner, Store
from pipelines.preprocess import preprocess_media
from pipelines.video.budget import FrameBudget, sample_indices
from pipelines.video.worker import DecodeProcess
from tests.bench.measure import Row
from tests.pipelines.video.clips import write_clip

# The papers' training budget: 2 fps, at most 128 frames, 8000 tokens.
BUDGET = FrameBudget(fps=2.0, max_frames=128, total_pixels=8000 * 28 * 28)
SIZES = ((360, 640), (720, 1280))
NUM_VIDEOS = 16
SECONDS = 10
SOURCE_FPS = 30
ROUNDS = 3


def rows() -> list[Row]:
    num_workers = os.cpu_count() or 1
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RayRunner(Store(folder / "store"), num_cpus=num_workers) as runner:
            runner.connect()
            for height, width in SIZES:
                media = _draw_videos(folder / f"{height}p", height, width)
                bare, ours = [], []
                for number in range(ROUNDS):
                    bare.append(_bare_frames_per_s(list(media.values()), num_workers))
                    ours.append(_preprocess_frames_per_s(media, folder / f"{height}p-{number}", num_workers))
                what = f"source frames/s at {height}p, {num_workers} workers: preprocess against decord alone"
                ratio = max(ours) / max(bare)
                table.append(Row(what, f"{max(ours):.0f}", f"{max(bare):.0f}", ratio, ">= 0.9"))
        options = {"cache_dir": folder / f"{height}p-0" / "cache", "num_workers": num_workers}
        second = preprocess_media(media, BUDGET, folder / "second", **options)
        peak_mib = _peak_mib(folder, next(iter(media.values())).path)
    return [
        *table,
        Row("peak memory of a decoding process at 720p", f"{peak_mib:.0f} MiB", "", target="<= 700 MiB"),
        Row("videos decoded for a second variant", str(second.decoded), f"{second.reused} reused", target="0"),
    ]


def _draw_videos(folder: Path, height: int, width: int) -> dict[str, Media]:
    """Copies of one film, told apart by a box that decoders skip."""
    folder.mkdir()
    data = _write_film(folder / "film.mp4", height, width).read_bytes()
    media = {}
    for copy in range(NUM_VIDEOS):
        path = folder / f"{copy}.mp4"
        path.write_bytes(data + struct.pack(">I4sQ", 16, b"free", copy))
        media[path.name] = Media("video", path)
    return media


def _write_film(path: Path, height: int, width: int) -> Path:
    """A pan over a random picture with grain, 1 Mbit/s at 360p."""
    rng = np.random.default_rng(0)
    num_frames = SECONDS * SOURCE_FPS
    coarse = rng.integers(0, 256, ((height + num_frames) // 8 + 1, (width + num_frames) // 8 + 1, 3), dtype=np.uint8)
    scene = coarse.repeat(8, axis=0).repeat(8, axis=1).astype(np.int16)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        grain = rng.integers(-25, 26, (height, width, 1), dtype=np.int16)
        view = scene[number // 2 : number // 2 + height, number : number + width]
        frames[number] = np.clip(view + grain, 0, 255)
    return write_clip(path, frames, fps=SOURCE_FPS, options={"preset": "veryfast", "crf": "28"})


def _preprocess_frames_per_s(media: dict[str, Media], folder: Path, num_workers: int) -> float:
    """Steady speed, from the first finished block to the last file."""
    times: list[float] = []
    preprocess_media(
        media,
        BUDGET,
        folder / "artifact",
        cache_dir=folder / "cache",
        num_workers=num_workers,
        on_progress=lambda done, total: times.append(time.perf_counter()),
    )
    finished = times[1:]
    return (len(finished) - 1) * SECONDS * SOURCE_FPS / (finished[-1] - finished[0])


def _bare_frames_per_s(media: list[Media], num_workers: int) -> float:
    """One process per core that samples the same frames with decord, one thread and one call per video."""
    shares = [[str(item.path) for item in media[start::num_workers]] for start in range(num_workers)]
    command = [sys.executable, "-m", "tests.bench.bench_preprocess"]
    processes = [subprocess.Popen([*command, *share], stdout=subprocess.PIPE, text=True) for share in shares]
    spans = [json.loads(process.communicate()[0]) for process in processes]
    seconds = max(span[1] for span in spans) - min(span[0] for span in spans)
    return len(media) * SECONDS * SOURCE_FPS / seconds


def _bare(paths: list[str]) -> None:
    import decord

    start = time.time()
    for path in paths:
        reader = decord.VideoReader(path, num_threads=1)
        indices = sample_indices(len(reader), reader.get_avg_fps(), BUDGET)
        reader.get_batch(indices).asnumpy()
    print(json.dumps([start, time.time()]))


def _peak_mib(folder: Path, path: Path) -> float:
    """The most that one decoding process held while it decoded a file three times."""
    process = DecodeProcess(folder / "memory", BUDGET, timeout_s=300)
    for number in range(3):
        process.decode(f"video-{number}", "video", str(path))
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.close()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    _bare(sys.argv[1:])
