"""The engine against bare Ray, the ideal of two workers, and the size of the paper's grids."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.planning import print_plan
from experiments.study import open_study
from pipelines.engine import Artifact, LocalRunner, RayRunner, Stage, StageConfig, Store, plan, walk
from pipelines.engine.store import RECORD, write_json
from tests.bench.measure import Row
from tests.experiments.conftest import SMALL

NUM_STAGES = 1_000
NUM_PLANNED = 10_000
NUM_WAITING = 24
NUM_SEEDS = 45  # with them the smoke study has the quickstart's 360 cells
WAIT_S = 0.25
ROUNDS = 3


@dataclass(frozen=True)
class Cell:
    round: int
    number: int


def nothing(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    return {}


def wait(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Takes the same time however busy the machine is, so that what is measured is the runner."""
    time.sleep(WAIT_S)
    return {}


def rows() -> list[Row]:
    with _store() as store, RayRunner(store, num_cpus=2) as runner:
        runner.run(_stages(nothing, 100, round_=-1))  # starts Ray and its workers
        on_ray = [_over_ray(runner), _nothing_to_do(store), _two_workers(store)]
    return [*on_ray, *_plans(), *_run_again()]


def _over_ray(runner: RayRunner) -> Row:
    bare = ray.remote(nothing)

    def run_bare() -> None:
        ray.get([bare.remote(None, {}, None) for _ in range(NUM_STAGES)])

    ours, against = [], []
    for turn in range(ROUNDS):
        against.append(_seconds(run_bare))
        ours.append(_seconds(runner.run, _stages(nothing, NUM_STAGES, turn)))
    own, other = (min(times) / NUM_STAGES * 1e3 for times in (ours, against))
    what = f"{NUM_STAGES:,} no-op stages, leased, logged and recorded, against as many Ray tasks: each"
    return Row(what, f"{own:.2f} ms", f"{other:.2f} ms", own / other, f"at most 10 ms over: {own - other:.2f} ms")


def _nothing_to_do(store: Store) -> Row:
    stages = _stages(nothing, NUM_STAGES, 0)
    again = min(_seconds(RayRunner(store).run, stages) for _ in range(ROUNDS))
    return Row(f"the same {NUM_STAGES:,} run again: nothing to do", f"{again:.2f} s", "", None, "under 5 s")


def _two_workers(store: Store) -> Row:
    seconds = {}
    for num_workers in (1, 2):
        runner = RayRunner(store, max_in_flight=num_workers)
        seconds[num_workers] = _seconds(runner.run, _stages(wait, NUM_WAITING, num_workers))
    what = f"{NUM_WAITING} independent stages of {WAIT_S} s on 2 workers against 1: share of the ideal speed-up"
    share = seconds[1] / seconds[2] / 2
    return Row(what, f"{seconds[2]:.2f} s", f"{seconds[1]:.2f} s", share, "at least 0.9")


def _plans() -> Iterator[Row]:
    with _store() as store:
        cells = _grid()
        LocalRunner(store).run(cells[: NUM_PLANNED // 5])
        seeds = list(range(56))
        yield _whole_study(["study=quickstart", f"study.seeds={seeds}", f"store={store.root.parent / 'none'}"])
        for what, root in (("none", store.root.parent / "empty"), ("a fifth", store.root)):
            taken = _seconds(_plan_grid, root)
            yield Row(
                f"{NUM_PLANNED:,} cells over 100 trials planned, {what} stored",
                f"{taken:.2f} s",
                "",
                None,
                "under 10 s",
            )


def _plan_grid(root: Path) -> None:
    plan(Store(root), _grid())


def _whole_study(overrides: list[str]) -> Row:
    """`hope plan` but for its start: compose, make the grid, look every stage up, print every cell."""
    printed = Console(file=io.StringIO())
    taken = _seconds(lambda: print_plan(open_study(overrides), printed, cells=True))
    cells = len(open_study(overrides).grid.cells)
    return Row(f"a study of {cells:,} cells composed, planned and listed", f"{taken:.2f} s", "", None, "under 10 s")


def _run_again() -> Iterator[Row]:
    """`hope run` of a finished study, from the start of its process to the end."""
    with _store() as store:
        for seeds in ([0], list(range(NUM_SEEDS))):
            overrides = [*SMALL, f"study.seeds={seeds}", f"store={store.root}"]
            cells = _finish(store, overrides)
            command = [sys.executable, "-m", "experiments", "run", *overrides]
            run = partial(subprocess.run, command, check=True, capture_output=True)
            run()  # writes MLflow and the report
            taken = min(_seconds(run) for _ in range(ROUNDS))
            yield Row(
                f"a finished study of {cells} cells run again, all of its process",
                f"{taken:.2f} s",
                "",
                None,
                "under 5 s",
            )


def _finish(store: Store, overrides: Sequence[str]) -> int:
    """Run the stages of the study's first seed and give the others copies of their artifacts; how many cells it has."""
    config, _ = load_config(overrides)
    grid = build_grid(config)
    first = {trial.variant.name: trial for trial in reversed(grid.trials)}
    assert LocalRunner(store).run([stage for trial in first.values() for stage in trial.stages()]).ok
    for trial in grid.trials:
        for stage, like in zip(walk(trial.stages()), walk(first[trial.variant.name].stages()), strict=True):
            made, copy = (store.artifact_path(each.name, each.fingerprint) for each in (like, stage))
            if not copy.exists():
                shutil.copytree(made, copy)
                own = {"fingerprint": stage.fingerprint, "payload": stage.payload, "label": stage.label}
                write_json(copy / RECORD, json.loads((made / RECORD).read_text()) | own)
    return len(grid.cells)


def _grid() -> list[Stage]:
    trials = _stages(nothing, 100, round_=0)
    config = [StageConfig(Cell(1, number)) for number in range(NUM_PLANNED)]
    return [Stage("cell", 1, nothing, c, inputs={"trial": trials[i % 100]}) for i, c in enumerate(config)]


def _stages(run: Any, count: int, round_: int) -> list[Stage]:
    return [Stage(run.__name__, 1, run, StageConfig(Cell(round_, number))) for number in range(count)]


@contextmanager
def _store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        yield Store(Path(folder) / "store")


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start
