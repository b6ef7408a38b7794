"""Several workers: the weights of one worker within rounding, and after kills those of an undisturbed training."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.engine import Artifact
from pipelines.finetune.stage import run
from tests.pipelines import world
from tests.pipelines.test_training_resumes import stage_of
from tests.pipelines.tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


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
    told = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    return pickle.loads(job.with_suffix(".result").read_bytes())


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "checkpoint" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_workers_have_the_losses_rows_and_positions_of_one(
    fsdp: bool, trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    stage = stage_of(checkpoint, fsdp=fsdp, micro_batch_size=1)
    one = run(stage.config, trial, tmp_path)
    two = on_two(stage, trial, tmp_path / "two")
    same = ("samples_sha256", "position_ids_sha256", "drawn_scales", "num_samples", "steps")
    assert {key: two[key] for key in same} == {key: one[key] for key in same}
    losses = [
        [json.loads(line)["loss"] for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (tmp_path, tmp_path / "two" / "out")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    after_two = weights(tmp_path / "two" / "out")
    assert after_two.keys() == weights(tmp_path).keys()
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(after_two[name], tensor, rtol=0, atol=5e-5)
