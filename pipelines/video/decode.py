"""Decoding a video or a picture within a frame budget: decord first, PyAV for what decord cannot read.

Frames are (F, H, W, 3) uint8 RGB, already sampled and resized.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import decord
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.video.budget import FrameBudget, image_size, sample_indices, video_frame_size

# Raise it when the same file and budget would give other frames: it goes into the cache key with the two versions.
DECODE_VERSION = 2
DECODERS = f"v{DECODE_VERSION}-decord-{decord.__version__}-pyav-{av.__version__}"

# A damaged video is kept when this share of its frames comes before the damage; a shorter one misleads its questions.
MIN_READABLE_SHARE = 0.9

# decord holds a whole batch twice, so that the batch bounds a worker's memory. And while a batch is resized, its thread
# goes on and converts frames that nobody asked for: a short film is one batch.
BATCH_BYTES = 16 * 2**20

# ffmpeg says that it conceals damage at this level, and of sound files nothing, but for this of full-range colours (as
# phones record), which decord reads as PyAV does.
decord.logging.set_level(decord.logging.INFO)
HARMLESS = "deprecated pixel format used, make sure you did set range correctly"


class DecodeError(Exception):
    """A file that gives no trustworthy frames; the message says why in one line."""


class NoVideoStream(DecodeError):
    """The file opens and holds no video."""


class UnreadableFile(DecodeError):
    """Neither decoder, or no picture reader, can open the file."""


class DamagedVideo(DecodeError):
    """Too few frames come before the first damage."""


@dataclass(frozen=True)
class Decoded:
    """Sampled frames (F, H, W, 3) uint8 and where they come from; `sample_fps` is frames kept per second of video."""

    frames: np.ndarray
    decoder: str
    num_source_frames: int
    source_fps: float
    readable_share: float = 1.0

    @property
    def duration_s(self) -> float:
        return self.num_source_frames / self.source_fps

    @property
    def sample_fps(self) -> float:
        return len(self.frames) / self.duration_s


def decode_video(path: Path, budget: FrameBudget) -> Decoded:
    """Decode a video file within the budget.

    decord conceals damage: it returns smeared frames and only ffmpeg's log tells. So whatever ffmpeg writes to stderr
    (redirected meanwhile: one decode at a time in a process) sends the file to PyAV, which stops at the first error;
    the frames before it are kept if they are MIN_READABLE_SHARE of the video. Raises DecodeError.
    """
    decoded, complaint = _try_decord(path, budget)
    if decoded is None and not complaint:
        import torch  # noqa: F401 - for the resize; here, as what it may say to stderr is no complaint of ffmpeg's

        decoded, complaint = _try_decord(path, budget)
    if decoded is not None and not complaint:
        return decoded
    try:
        return _decode_with_pyav(path, budget)
    except DecodeError as error:
        raise type(error)(f"{error} (decord: {complaint})") from None


def decode_image(path: Path, budget: FrameBudget) -> Decoded:
    """Read a picture as a video of one frame, sized by the budget's limits for pictures. Raises DecodeError."""
    try:
        with Image.open(path) as image:
            frame = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UnreadableFile(f"not a readable picture: {error}") from None
    size = image_size(frame.shape[0], frame.shape[1], budget)
    return Decoded(resize(frame[None], size), f"pillow {Image.__version__}", num_source_frames=1, source_fps=1.0)


def _try_decord(path: Path, budget: FrameBudget) -> tuple[Decoded | None, str]:
    """What decord makes of the file, and the first line of what it or ffmpeg complains about."""
    try:
        with _ffmpeg_log() as log:
            decoded = _decode_with_decord(path, budget)
    except (DecodeError, decord.DECORDError, RuntimeError, IndexError) as error:
        return None, _first_line(str(error)) or type(error).__name__
    lines = log.decode(errors="replace").splitlines()
    return decoded, _first_line("\n".join(line for line in lines if HARMLESS not in line))


def _decode_with_decord(path: Path, budget: FrameBudget) -> Decoded | None:
    """None where frames need a resize and torch is not loaded yet.

    decord's thread decodes ahead without bound: 0.4 GB of 720p while torch loads.
    """
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    fps = float(reader.get_avg_fps())
    if not fps > 0:
        raise DamagedVideo("no frame rate")
    indices = sample_indices(len(reader), fps, budget)
    first = reader.get_batch(indices[:1]).asnumpy()
    size = video_frame_size(first.shape[1], first.shape[2], len(indices), budget)
    if first.shape[1:3] != size and "torch" not in sys.modules:
        return None
    frames = np.empty((len(indices), *size, 3), np.uint8)
    frames[:1] = resize(first, size)
    batch = max(1, BATCH_BYTES // first.nbytes)
    for start in range(1, len(indices), batch):
        chosen = indices[start : start + batch]
        frames[start : start + len(chosen)] = resize(reader.get_batch(chosen).asnumpy(), size)
    return Decoded(
        frames,
        f"decord {decord.__version__}",
        num_source_frames=len(reader),
        source_fps=fps,
    )


def _decode_with_pyav(path: Path, budget: FrameBudget) -> Decoded:
    """Two passes, the first to learn how many frames are sound: the sampler needs the number."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise NoVideoStream("no video stream in the file that a decoder knows")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            announced = stream.frames or round(_announced_s(container) * fps)
            num_frames, error = 0, None
            try:
                for _ in _strict_frames(container):
                    num_frames += 1
            except av.FFmpegError as raised:
                error = raised
    except (av.FFmpegError, OSError, IndexError) as raised:
        raise UnreadableFile(f"cannot be opened: {_first_line(str(raised))}") from None
    share = min(1.0, num_frames / max(announced, 1))
    if num_frames == 0 or not fps or share < MIN_READABLE_SHARE:
        cause = f": {error}" if error else ""
        raise DamagedVideo(f"{num_frames} of {announced} frames are sound{cause}")
    indices = sample_indices(num_frames, fps, budget)
    with av.open(str(path)) as container:
        frames = _pick(_strict_frames(container), indices, budget)
    return Decoded(frames, f"pyav {av.__version__}", num_frames, fps, readable_share=share)


def _announced_s(container: av.container.InputContainer) -> float:
    """How long the video lasts by the file's own account: its sound may be longer."""
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if written := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, written.groups())
        return hours * 3600 + minutes * 60 + seconds
    return float((container.duration or 0) / av.time_base)


def _strict_frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """The frames before the first damage; where ffmpeg names it, it raises."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    for packet in container.demux(stream):
        if packet.is_corrupt:  # cut short by the end of the file
            return
        for frame in packet.decode():
            if frame.is_corrupt:
                return
            yield frame


def _pick(source: Iterable[av.VideoFrame], indices: np.ndarray, budget: FrameBudget) -> np.ndarray:
    wanted = set(indices.tolist())
    frames = []
    for number, frame in enumerate(source):
        if number in wanted:
            pixels = frame.to_ndarray(format="rgb24")
            size = video_frame_size(pixels.shape[0], pixels.shape[1], len(indices), budget)
            frames.append(resize(pixels[None], size))
        if number == indices[-1]:
            break
    return np.concatenate(frames)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic in uint8, which is what the reference processors' torchvision call comes down to."""
    if frames.shape[1:3] == size:
        return frames
    import torch  # here, because a worker whose frames have their size already need not spend 2 s and 200 MB on it

    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).numpy()


@contextmanager
def _ffmpeg_log() -> Iterator[bytearray]:
    """Collect what C code writes to stderr; filled when the block ends."""
    log = bytearray()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            log += file.read()


def _first_line(text: str) -> str:
    """The first line without times, source positions and addresses, which differ between equal failures."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: | @ 0x[0-9a-f]+", "", text.strip().partition("\n")[0])[:200]
