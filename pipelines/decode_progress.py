"""How far a running preprocess stage is: a small file that the stage rewrites and the launcher reads."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.engine.fingerprint import encode, fingerprint
from pipelines.engine.stage import StageConfig

# Called with the number of files that are done and the number of all.
Progress = Callable[[int, int], None]


def progress_path(config: StageConfig) -> Path:
    """The file that tells how far this stage is, while it runs; the launcher finds it from the config alone."""
    name = fingerprint(encode(config.identity))[:16]
    return Path(config.placement.cache_dir) / "progress" / f"{name}.json"


def read_progress(config: StageConfig) -> dict[str, Any] | None:
    """done and total (files), elapsed_s, and eta_s (None at first); None before the stage has begun to decode."""
    path = progress_path(config)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def progress_writer(path: Path) -> Progress:
    """Rewrite the file at once, then at most twice a second, and at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an earlier run
    started = last = time.monotonic()
    known: int | None = None

    def write(done: int, total: int) -> None:
        nonlocal last, known
        now = time.monotonic()
        if known is not None and now - last < 0.5 and done < total:
            return
        known = done if known is None else known  # what the cache had took no time
        last = now
        eta_s = (now - started) / (done - known) * (total - done) if done > known else None
        state = {"done": done, "total": total, "elapsed_s": now - started, "eta_s": 0.0 if done == total else eta_s}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(path)

    return write
