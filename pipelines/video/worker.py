"""The process that decodes: one video at a time, each under a time limit that the kernel enforces.

A decoder that hangs in C code can only be killed, so decoding has a process of its own. It talks to its owner in JSON
over one pipe, and ends by itself when the owner's end closes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from pipelines.video.budget import FrameBudget, UnusableShape, patchify
from pipelines.video.decode import DecodeError, decode_image, decode_video
from pipelines.video.frames import Failure, Frames, ShardWriter, from_json

# One decoding process a core, so torch's resize must not start threads on the others. And glibc gives freed buffers of
# frames back to the kernel, whose fresh pages cost a short film up to a tenth of its time; here the next film has them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}


class DecodeProcess:
    """Owns one decoding process, started at the first file and again after each one that killed it."""

    def __init__(self, folder: Path, budget: FrameBudget, timeout_s: float) -> None:
        self._settings = json.dumps({"folder": str(folder), "budget": asdict(budget), "timeout_s": timeout_s})
        self._timeout_s = timeout_s
        self._process: subprocess.Popen | None = None

    def decode(self, digest: str, kind: str, path: str) -> Frames | Failure:
        """Decode one file into the cache folder; a file that hangs or crashes its decoder is a Failure."""
        if self._process is None:
            self._start()
        assert self._process is not None
        try:
            self._pipe.send_bytes(json.dumps({"digest": digest, "kind": kind, "path": path}).encode())
            return from_json(json.loads(self._pipe.recv_bytes()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.wait()
            self.close()
        if code == -signal.SIGALRM:
            return Failure(digest, f"DecodeTimeout: not decoded within {self._timeout_s:g} s")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Failure(digest, f"DecoderCrash: the decoding process ended with {cause}")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "pipelines.video.worker", str(theirs.fileno()), self._settings]
        environment = {**os.environ, **ENVIRONMENT}
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()


def main(file_descriptor: str, settings: str) -> None:
    pipe = Connection(int(file_descriptor))
    config = json.loads(settings)
    budget = FrameBudget(**_with_tuples(config["budget"]))
    writer = ShardWriter(Path(config["folder"]), budget.patch_dim)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            job = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, config["timeout_s"])
        reply = _decode(job, budget, writer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(json.dumps(asdict(reply)).encode())


def _decode(job: Mapping[str, str], budget: FrameBudget, writer: ShardWriter) -> Frames | Failure:
    decode = decode_image if job["kind"] == "image" else decode_video
    try:
        decoded = decode(Path(job["path"]), budget)
    except (DecodeError, UnusableShape) as error:
        failure = Failure(job["digest"], f"{type(error).__name__}: {error}")
        writer.append_failure(failure)
        return failure
    rows, grid = patchify(decoded.frames, budget)
    return writer.append(job["digest"], decoded, rows, grid)


def _with_tuples(budget: Mapping) -> dict:
    size = budget["frame_size"]
    return {**budget, "frame_size": tuple(size) if size else None}


if __name__ == "__main__":
    main(*sys.argv[1:])
