"""Several workers: the weights of one worker within rounding, and after kills those of an undisturbed training."""

import dataclasses
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from pipelines.engine import Artifact
from pipelines.finetune import FinetunePlacement, HeldOut, Placement
from pipelines.finetune.rows import Source
from pipelines.finetune.stage import run
from tests.pipelines import world
from tests.pipelines.test_training_resumes import RECIPE, stage_of
from tests.pipelines.tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]

# Three held-out rows, one a forward: the second of two workers has none in the second round.
LONG = dataclasses.replace(RECIPE, steps=60, held_out=HeldOut(3, 15, "best"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), world.MODEL)


ONE_OF_TWO = """
import pickle, sys
from pathlib import Path
from pipelines.finetune.stage import train_here

config, inputs, out_dir = pickle.loads(Path(sys.argv[1]).read_bytes())
result = train_here(config, inputs, out_dir)
if result:
    Path(sys.argv[1]).with_suffix(".result").write_bytes(pickle.dumps(result))
"""


def on_two(stage: Any, inputs: dict[str, Artifact], folder: Path) -> dict[str, Any]:
    """What a worker runs, in two processes joined over gloo as Ray Train joins its workers."""
    out_dir = folder / "out"
    out_dir.mkdir(parents=True)
    job = folder / "job"
    job.write_bytes(pickle.dumps((stage.config, inputs, out_dir)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(job)],
            cwd=ROOT,
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    return pickle.loads(job.with_suffix(".result").read_bytes())


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(trial: dict[str, Artifact], checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers leave of a training of 60 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    on_two(stage_of(checkpoint, LONG, micro_batch_size=1), trial, folder)
    return folder / "out"


def assert_as_one_worker(two: Path, one: Path) -> None:
    """Sums in another order: the losses agree to rounding, the weights to what Adam makes of it."""
    lines = [[json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()] for path in (one, two)]
    for name in ("loss", "held_out_loss"):
        losses = [{line["step"]: line[name] for line in each if name in line} for each in lines]
        assert losses[0]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    after_one, after_two = weights(one), weights(two)
    assert after_two.keys() == after_one.keys()
    for name, tensor in after_one.items():
        torch.testing.assert_close(after_two[name], tensor, rtol=0, atol=5e-4)


@pytest.mark.slow
def test_two_workers_have_the_losses_and_weights_of_one(
    undisturbed: Path, trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    run(stage_of(checkpoint, LONG).config, trial, tmp_path)
    assert_as_one_worker(undisturbed, tmp_path)


@pytest.mark.slow
def test_sharded_weights_train_on_the_same_rows_and_positions_to_the_same_weights(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, held_out=HeldOut(3, 2, "best"))
    # A checkpoint right after a measurement, and steps after it.
    stage = stage_of(checkpoint, recipe, fsdp=True, micro_batch_size=1, checkpoint_steps=2, attention="eager")
    one = run(stage.config, trial, tmp_path)
    two = on_two(stage, trial, tmp_path / "two")
    same = ("samples_sha256", "position_ids_sha256", "drawn_scales", "num_samples", "steps", "best_step", "attention")
    assert one["attention"] == "eager"
    assert {key: two[key] for key in same} == {key: one[key] for key in same}
    assert_as_one_worker(tmp_path / "two" / "out", tmp_path)


def mixed_rows(drawn: Path, root: Path) -> Source:
    """Rows of text alone for the most, the others with a video, a picture or both."""
    videos = sorted(path.name for path in (drawn / "videos").iterdir())
    pictures = sorted(path.name for path in (drawn / "needles").iterdir())
    records = []
    for number in range(24):
        shown = {1: ["video"], 2: ["image"], 3: ["image", "video"]}.get(number % 12, [])
        own = {"video": f"videos/{videos[number]}", "image": f"needles/{pictures[number % len(pictures)]}"}
        for kind in shown:
            (root / own[kind]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / own[kind], root / own[kind])
        asked = "".join(f"<{kind}>\n" for kind in shown) + "what?"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"a thing {number}"}]
        records.append({"id": f"{number}", "conversations": turns, **{kind: own[kind] for kind in shown}})
    (root / "rows.json").write_text(json.dumps(records))
    return Source(root, ("rows.json",), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("train_vision", "precision"), [(False, "fp32"), (True, "fp32"), (True, "bf16")])
def test_sharded_weights_train_where_workers_at_once_have_rows_with_and_without_media(
    trial: dict[str, Artifact],
    checkpoint: Any,
    tmp_path: Path,
    train_vision: bool,
    precision: Literal["fp32", "bf16"],
) -> None:
    source = mixed_rows(trial["dataset"].path, tmp_path / "rows")
    # Momentum and decay would move a tower in a batch without media, were it given gradients of zero there.
    recipe = dataclasses.replace(
        RECIPE,
        steps=8,
        train_vision=train_vision,
        precision=precision,
        weight_decay=0.1,
        held_out=HeldOut(3, 2, "best"),
    )
    spread = FinetunePlacement(checkpoint, source, loop=Placement(fsdp=True, micro_batch_size=1))
    stage = stage_of(checkpoint, recipe, spread=spread)
    one = run(stage.config, trial, tmp_path)
    assert one["num_samples"] == 21
    two = on_two(stage, trial, tmp_path / "two")
    if precision == "fp32":
        assert_as_one_worker(tmp_path / "two" / "out", tmp_path)
    else:  # autocast and fully_shard round other products; only gradients of one dtype are exchanged
        assert two["final_loss"] == pytest.approx(one["final_loss"], rel=0.01)


CLUSTER = """
import os, pickle, signal, sys, threading, time
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster
from pipelines.engine import RayRunner, Store
from tests.pipelines.engine.toys import wait_until

stage, store = pickle.loads(Path(sys.argv[1]).read_bytes())
checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": checks},
)
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()

def raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)

def workers(node):
    found = []
    for process in raylet(node).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found

def lines():
    return sum(len(path.read_text().splitlines()) for path in Path(store).glob("work/finetune/*/history.jsonl"))

told = []

def disturb():
    wait_until(lambda: lines() >= 15, timeout_s=600)
    busy = next(node for node in nodes if workers(node))
    victim = workers(busy)[0]
    victim.kill()
    wait_until(lambda: not victim.is_running(), timeout_s=60)
    told.append(lines())
    # It goes on from step 10: only a new group of workers takes it beyond.
    wait_until(lambda: lines() >= told[0] + 10, timeout_s=600)
    lost = next(node for node in nodes if workers(node))
    for process in [*raylet(lost).children(recursive=True), raylet(lost)]:
        process.kill()
    told.append(lines())

watcher = threading.Thread(target=disturb, daemon=True)
watcher.start()
with RayRunner(Store(store), address=cluster.address, poll_s=0.05, backoff_s=0.01) as runner:
    summary = runner.run([stage])
print(summary.ok, [failure.traceback for _, failure in summary.failed], told, flush=True)
cluster.shutdown()
"""


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_worker_and_then_a_node_ends_with_the_weights_of_an_undisturbed_training(
    undisturbed: Path, trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    stage = stage_of(checkpoint, LONG, micro_batch_size=1, checkpoint_steps=10)
    store = trial["frames"].path.parents[2]
    spread = dataclasses.replace(stage.config.placement, num_workers=2)
    stage = stage_of(checkpoint, LONG, spread=spread)
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((stage, store)))
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(job)],
        cwd=ROOT,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_worker_niceness": "0",
        },
        capture_output=True,
        text=True,
        timeout=850,
    )
    told = done.stdout.splitlines()[-1:]
    assert told, done.stderr[-3000:]
    assert told[0].startswith("True []"), told[0]
    assert len(json.loads(told[0].removeprefix("True []"))) == 2, "both kills happened while it trained"
    artifact = store / "artifacts" / "finetune" / stage.fingerprint
    steps = [json.loads(line)["step"] for line in (artifact / "history.jsonl").read_text().splitlines()]
    assert steps == list(range(LONG.steps or 0))
    after, wanted = weights(artifact), weights(undisturbed)
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)
