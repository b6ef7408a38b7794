"""Preprocess: the bare decoder on the same cores, memory, and what a second variant decodes

Both contestants note when each file is done, and their speed is that of the time in which all their workers were busy;
the start of processes is left out. They take turns, and the turn with the middle ratio counts: a machine's speed drifts
over the minutes of this, but little within a turn. Films are of 30 frames/s.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil

from pipelines.datasets import Media
from pipelines.engine import RayRunner, Store
from pipelines.preprocess import preprocess_media
from pipelines.video.budget import FrameBudget, sample_indices
from pipelines.video.worker import DecodeProcess
from tests.bench.measure import Row
from tests.pipelines.video.clips import write_clip

# The papers' training budget: 2 fps, at most 128 frames, 8000 tokens.
BUDGET = FrameBudget(fps=2.0, max_frames=128, total_pixels=8000 * 28 * 28)
SECONDS_DRAWN = 10
SOURCE_FPS = 30
ROUNDS = 3


@dataclass(frozen=True)
class Films:
    """Copies of one film; LLaVA-Video-178K's last up to three minutes."""

    height: int
    width: int
    seconds: int
    number: int


CASES = (Films(360, 640, 10, 128), Films(360, 640, 40, 24), Films(360, 640, 60, 20), Films(720, 1280, 30, 16))


def rows() -> list[Row]:
    num_workers = os.cpu_count() or 1
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RayRunner(Store(folder / "store"), num_cpus=num_workers) as runner:
            runner.connect()
            for case, films in enumerate(CASES):
                media = _draw(folder / f"films{case}", films)
                paths = [str(item.path) for item in media.values()]
                turns = []
                for _ in range(ROUNDS):
                    bare = _busy_files_per_s(_bare_ends(paths, num_workers))
                    shutil.rmtree(folder / "ours", ignore_errors=True)  # the disk need not hold every round
                    ends = _preprocess_ends(media, folder / "ours", num_workers)
                    turns.append((_busy_files_per_s(ends), bare))
                ours, bare = sorted(turns, key=lambda turn: turn[0] / turn[1])[ROUNDS // 2]
                frames = films.seconds * SOURCE_FPS
                about = f"{films.height}p, {films.seconds} s"
                what = f"source frames/s, {about}, {num_workers} workers: against decord alone"
                table.append(Row(what, f"{ours * frames:.0f}", f"{bare * frames:.0f}", ours / bare, ">= 0.9"))
                cpu_s, peak_mib = _decode_process(folder / f"alone{case}", paths)
                bare_cpu_s = min(_bare(paths[:1])[1] for _ in range(ROUNDS))
                what = f"CPU time of a film, {about}, one process without Ray: against decord alone"
                table.append(Row(what, f"{cpu_s:.2f} s", f"{bare_cpu_s:.2f} s", cpu_s / bare_cpu_s, "<= 1.11"))
        options = {"cache_dir": folder / "ours" / "cache", "num_workers": num_workers}
        second = preprocess_media(media, BUDGET, folder / "second", **options)
    return [
        *table,
        Row("peak memory of a decoding process at 720p", f"{peak_mib:.0f} MiB", "", target="<= 700 MiB"),
        Row("videos decoded for a second variant", str(second.decoded), f"{second.reused} reused", target="0"),
    ]


def _draw(folder: Path, films: Films) -> dict[str, Media]:
    """Copies of one film, told apart by a box that decoders skip."""
    folder.mkdir()
    drawn = _write_film(folder / "drawn.mp4", films.height, films.width)
    data = _repeat(drawn, folder / "film.mp4", films.seconds // SECONDS_DRAWN).read_bytes()
    media = {}
    for copy in range(films.number):
        path = folder / f"{copy}.mp4"
        path.write_bytes(data + struct.pack(">I4sQ", 16, b"free", copy))
        media[path.name] = Media("video", path)
    return media


def _repeat(source: Path, target: Path, times: int) -> Path:
    """The film several times over, its packets copied."""
    with av.open(str(target), "w") as output:
        stream = None
        for time_before in range(times):
            with av.open(str(source)) as film:
                stream = stream or output.add_stream_from_template(film.streams.video[0])
                for packet in film.demux(film.streams.video[0]):
                    if packet.dts is not None:
                        shift = round(time_before * SECONDS_DRAWN / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)
    return target


def _write_film(path: Path, height: int, width: int) -> Path:
    """A pan over a random picture with grain, 1 Mbit/s at 360p."""
    rng = np.random.default_rng(0)
    num_frames = SECONDS_DRAWN * SOURCE_FPS
    coarse = rng.integers(0, 256, ((height + num_frames) // 8 + 1, (width + num_frames) // 8 + 1, 3), dtype=np.uint8)
    scene = coarse.repeat(8, axis=0).repeat(8, axis=1).astype(np.int16)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        grain = rng.integers(-25, 26, (height, width, 1), dtype=np.int16)
        view = scene[number // 2 : number // 2 + height, number : number + width]
        frames[number] = np.clip(view + grain, 0, 255)
    return write_clip(path, frames, fps=SOURCE_FPS, options={"preset": "veryfast", "crf": "28"})


def _busy_files_per_s(ends: list[float]) -> float:
    """Files per second from the end of the first tenth to the end of the ninth, when all workers are busy."""
    ends = sorted(ends)
    first, last = len(ends) // 10 + 1, -(len(ends) // 10) - 2
    return (len(ends) + last - first) / (ends[last] - ends[first])


def _preprocess_ends(media: dict[str, Media], folder: Path, num_workers: int) -> list[float]:
    """When each file was in the cache, which is before the stage is told of it: that is once for a block of files."""
    ends: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            done = sum(len(path.read_bytes().splitlines()) for path in (folder / "cache").glob("*/*.jsonl"))
            ends.extend([time.time()] * (done - len(ends)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        options = {"cache_dir": folder / "cache", "num_workers": num_workers}
        preprocess_media(media, BUDGET, folder / "artifact", **options)
    finally:
        over.set()
        watcher.join()
    return ends


def _bare_ends(paths: list[str], num_workers: int) -> list[float]:
    """One process per core that samples the same frames with decord, one thread and one call per video."""
    shares = [paths[start::num_workers] for start in range(num_workers)]
    command = [sys.executable, "-m", "tests.bench.bench_preprocess"]
    processes = [subprocess.Popen([*command, *share], stdout=subprocess.PIPE, text=True) for share in shares]
    return [end for process in processes for end in json.loads(process.communicate()[0])]


def _bare(paths: list[str]) -> tuple[list[float], float]:
    """When each film was done, and the CPU time of the last one."""
    import decord

    ends = []
    for path in paths:
        start_s = time.process_time()
        reader = decord.VideoReader(path, num_threads=1)
        indices = sample_indices(len(reader), reader.get_avg_fps(), BUDGET)
        reader.get_batch(indices).asnumpy()
        ends.append(time.time())
    return ends, time.process_time() - start_s


def _decode_process(folder: Path, paths: list[str]) -> tuple[float, float]:
    """The least CPU time in s of a film after the first, and the most memory in MiB, of one decoding process."""
    process = DecodeProcess(folder, BUDGET, timeout_s=300)
    spent = []
    for number in range(1 + ROUNDS):
        process.decode(f"video-{number}", "video", paths[number])
        spent.append(sum(psutil.Process(process.pid).cpu_times()[:2]))
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.close()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return float(np.diff(spent).min()), int(peak.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_bare(sys.argv[1:])[0]))
