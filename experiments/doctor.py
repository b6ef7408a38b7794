"""`hope doctor` and `hope ui`: what this machine has, what would be used, and the dashboard of a store."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.engine import Store, StoreError


def output_folder(overrides: Sequence[str]) -> Path:
    """The store named by `store=FOLDER`, else the default one."""
    for override in overrides:
        if not override.startswith("store="):
            raise ValueError(f"{override!r} is not understood here; only store=FOLDER is")
    return Path(overrides[-1].removeprefix("store=")) if overrides else Path("outputs")


def print_health(store: Path) -> int:
    """One line per part: name, ok or not, what would be used. Returns 1 if a part that a study needs does not work."""
    healthy = True
    for name, ok, text in checks(store):
        healthy &= ok
        print(f"{'ok  ' if ok else 'FAIL'}  {name:<10}  {text}")
    return 0 if healthy else 1


def checks(store: Path) -> Iterator[tuple[str, bool, str]]:
    yield "python", True, f"{sys.version.split()[0]}, {os.cpu_count()} CPUs"
    yield _device()
    yield _attention()
    yield _versions("decoder", ["decord", "av"])
    yield _versions("ray", ["ray"])
    yield _versions("mlflow", ["mlflow", "optuna", "hydra-core"])
    try:
        Store(store)
    except StoreError as error:
        yield "store", False, " ".join(str(error).split())
        return
    there = next(folder for folder in (store.resolve(), *store.resolve().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        yield "store", False, f"{there} cannot be written ({error.strerror}): choose another folder with store=FOLDER"
    else:
        yield "store", True, f"{store.resolve()}{'' if store.exists() else ' (made by the first run)'}"


def _device() -> tuple[str, bool, str]:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU (no CUDA device)"
    return "device", True, f"torch {torch.__version__}, {name}"


def _attention() -> tuple[str, bool, str]:
    import torch

    from pipelines.attention import FLASH, choose_attention, obstacle

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reasons = {name: obstacle(name, device, torch.bfloat16) for name in FLASH}
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items() if reason)
    return (
        "attention",
        True,
        f"auto is {choose_attention('auto', device, torch.bfloat16)}" + (f" ({why})" if why else ""),
    )


def _versions(part: str, packages: Sequence[str]) -> tuple[str, bool, str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            return part, False, f"{package} is not installed: run make setup"
    return part, True, ", ".join(found)


def serve_ui(store: Path, port: int, addresses: Mapping[str, str]) -> int:
    """Serve MLflow's dashboard on 127.0.0.1 until Ctrl-C; `addresses`: the page that compares each study's cells."""
    database = f"sqlite:///{(store / 'mlflow.db').resolve()}"
    print(f"MLflow on http://127.0.0.1:{port}  (experiments are studies; Ctrl-C ends it)")
    for study, address in addresses.items():
        print(f"compare the cells of {study}: {address}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    artifacts = (store / "mlartifacts").resolve().as_uri()
    command += ["--default-artifact-root", artifacts, "--host", "127.0.0.1", "--port", str(port)]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0
