"""Small clips for the tests: frames from a formula, encoded as a test asks."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Smooth ramps that shift from frame to frame, (F, H, W, 3) uint8; a codec keeps them within a few levels."""
    frame, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + 4 * frame) / 9), np.sin((y + 3 * frame) / 11), np.sin((x + y + 5 * frame) / 13)]
    return np.stack([128 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def write_clip(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 30,
    timestamps: list[int] | None = None,
    options: dict[str, str] | None = None,
    sound_s: int = 0,
) -> Path:
    """Encode frames; `timestamps` (in 1/1000 s) make the frame rate variable."""
    muxing = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # a cut file keeps its header
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=16000, layout="mono") if sound_s else None
        if timestamps:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if timestamps:
                frame.time_base, frame.pts = Fraction(1, 1000), timestamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            _mux_silence(container, sound, sound_s)
    if codec == "libsvtav1" and os.geteuid() == 0:
        # As root SVT-AV1 makes its caller a real-time thread, whose children then keep everybody else from the cores.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _mux_silence(container, container.add_stream("aac", rate=16000, layout="mono"), 1)
    return path


def _mux_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: int) -> None:
    samples = np.zeros((1, 16000 * seconds), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
