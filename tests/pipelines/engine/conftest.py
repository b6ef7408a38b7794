"""One Ray for all engine tests, and runners over it; a store and a desk (where toys leave witnesses) per test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import LocalRunner, RayRunner, Runner, Store

ROOT = Path(__file__).resolve().parents[3]
MakeRunner = Callable[..., Runner]
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", heartbeat_s=0.2, lease_ttl_s=1.0)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    path = tmp_path / "desk"
    path.mkdir()
    return path


@pytest.fixture(scope="package")
def ray_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with RayRunner(Store(tmp_path_factory.mktemp("ray") / "store"), num_cpus=2, num_gpus=1) as runner:
        runner.connect()
        yield


@pytest.fixture
def ray_runner(store: Store, ray_up: None) -> Callable[..., RayRunner]:
    def make(**options: Any) -> RayRunner:
        return RayRunner(store, **{"poll_s": 0.05, "backoff_s": 0.01, "grace_s": 10.0, **options})

    return make


@pytest.fixture(params=["local", "ray"])
def make_runner(request: pytest.FixtureRequest, store: Store) -> MakeRunner:
    """What every runner promises is tested on both."""
    if request.param == "ray":
        return request.getfixturevalue("ray_runner")
    return lambda **options: LocalRunner(store, **{"poll_s": 0.05, **options})


@pytest.fixture
def launch(store: Store, desk: Path) -> Iterator[Launch]:
    """Start other launchers over the same store, each a process of its own."""
    launchers: list[subprocess.Popen[str]] = []

    def start(keys: str, stage: str, *, runner: str = "local", wait_for: str = "") -> "subprocess.Popen[str]":
        module = [sys.executable, "-m", "tests.pipelines.engine.launcher"]
        command = [*module, str(store.root), str(desk), keys, stage, runner, wait_for]
        # As from a fresh shell: the Ray of this process has left its settings in the environment.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        launchers.append(launcher)
        return launcher

    yield start
    for launcher in launchers:
        with launcher:
            launcher.kill()
