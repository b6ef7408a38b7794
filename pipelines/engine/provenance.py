"""Where an artifact comes from: the launch (captured once) and the process that ran the stage."""

import os
import platform
import re
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("hope-lab", "torch", "transformers", "numpy", "decord", "av", "ray", "mlflow", "optuna")
SOURCE = Path(__file__).resolve().parents[2]


def capture_launch(seed: int | None = None) -> dict[str, Any]:
    """Describe this launch: git commit and dirty flag of the source, argv, seed, library versions, host."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "argv": [hide_passwords(word) for word in sys.argv],
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
        "host": socket.gethostname(),
    }


def hide_passwords(text: str) -> str:
    """The text with USER:PASSWORD in the place of what its addresses carry: what is kept or shown is passed on."""
    return re.sub(r"//[^/\s]*@", "//USER:PASSWORD@", text)


def capture_process(started_at: float, duration_s: float) -> dict[str, Any]:
    """Describe the process that ran a stage from `started_at` (seconds since 1970, this host's clock)."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu_count": os.cpu_count(),
        "device": _device(),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_at)),
        "duration_s": duration_s,
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(SOURCE), *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # an installed package, or a machine without git
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    # A stage that did not import torch used no GPU, and asking would cost it the import.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"
