"""Killed, spread and restarted trainings end with the weights of an undisturbed one."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hope_core import get_variant
from hope_core.modeling import load, variant_of
from pipelines.engine import Artifact, Stage
from pipelines.finetune import FinetunePlacement, HeldOut, Lora, Placement, Recipe, finetune_stage
from pipelines.finetune.stage import run
from tests.pipelines import world
from tests.pipelines.tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RECIPE = dataclasses.replace(world.RECIPE, equal_lengths=False, train_vision=False, steps=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), world.MODEL)


def train(
    trial: dict[str, Artifact],
    out_dir: Path,
    model: Any,
    recipe: Recipe = RECIPE,
    variant: str = "hope",
    **placement: Any,
) -> dict[str, Any]:
    """Run the stage's function in this process on the data of a trained trial."""
    out_dir.mkdir(exist_ok=True)
    stage = stage_of(model, recipe, variant, **placement)
    return run(stage.config, trial, out_dir)


def stage_of(
    model: Any,
    recipe: Recipe = RECIPE,
    variant: str = "hope",
    *,
    spread: FinetunePlacement | None = None,
    **placement: Any,
) -> Stage:
    dataset, frames = world.data_stages(Path())
    return finetune_stage(
        get_variant(variant),
        model,
        recipe,
        0,
        dataset=dataset,
        frames=frames,
        group="g",
        placement=spread or FinetunePlacement(model, loop=Placement(**placement)),
    )


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / "checkpoint" / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def steps_of(out_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out_dir / "history.jsonl").read_text().splitlines()]


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from pipelines.finetune import trainer
from pipelines.finetune.stage import run

config, trial, out_dir = pickle.loads(Path(sys.argv[1]).read_bytes())
step = trainer.Trainer.step
def deadly(self, number, *rest):
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *rest)
trainer.Trainer.step = deadly
run(config, trial, out_dir)
"""


def test_after_kill_9_a_training_goes_on_from_its_checkpoint_to_the_same_weights_bit_for_bit(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        RECIPE,
        lr=30.0,  # the best weights are older than the checkpoint: no later measurement is as low
        lora=Lora(2, 4, 0.5, ("q_proj", "v_proj")),  # its dropout is random too
        held_out=HeldOut(5, 2, "best"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = train(trial, whole, checkpoint, recipe, checkpoint_steps=2)
    killed.mkdir()
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((stage_of(checkpoint, recipe, checkpoint_steps=2).config, trial, killed)))
    done = subprocess.run([sys.executable, "-c", KILLED, str(job), "5"], cwd=ROOT, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert steps_of(killed) == [0, 1, 2, 3, 4]
    resumed = train(trial, killed, checkpoint, recipe, checkpoint_steps=2)
    assert steps_of(killed) == [0, 1, 2, 3, 4, 5]
    assert same(whole, killed)
    assert resumed["best_step"] == 1
    found = ("samples_sha256", "position_ids_sha256", "drawn_scales", "final_loss", "best_step", "best_held_out_loss")
    assert {key: resumed[key] for key in found} == {key: undisturbed[key] for key in found}
    assert not (killed / "progress").exists()


def test_rows_in_pieces_of_any_size_padded_or_packed_give_the_weights_of_the_whole_batch(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    whole = train(trial, tmp_path / "whole", checkpoint, checkpoint_steps=None)
    # Packed sums round otherwise, and Adam makes whole steps of gradients near zero.
    for size, packed, bound in ((1, False, 2e-5), (3, False, 2e-5), (3, True, 1e-4)):
        out_dir = tmp_path / f"{size}-{packed}"
        result = train(trial, out_dir, checkpoint, micro_batch_size=size, packed=packed, checkpoint_steps=None)
        for name, tensor in weights(tmp_path / "whole").items():
            torch.testing.assert_close(weights(out_dir)[name], tensor, rtol=0, atol=bound)
        assert result["position_ids_sha256"] == whole["position_ids_sha256"]
        assert result["final_loss"] == pytest.approx(whole["final_loss"], abs=1e-5)


def test_adapters_are_merged_and_the_checkpoint_loads_as_any_other(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, lora=Lora(2, 4, 0.0, ("q_proj",)), precision="bf16")
    train(trial, tmp_path / "lora", checkpoint, recipe)
    model = load(tmp_path / "lora" / "checkpoint")
    assert variant_of(model) == get_variant("hope")
    before = load_file(Path(checkpoint.path) / "model.safetensors")
    changed = {
        name
        for name, tensor in weights(tmp_path / "lora").items()
        if not torch.equal(tensor.float(), before[name].bfloat16().float())
    }
    assert changed == {name for name in before if name.endswith("q_proj.weight")}


@pytest.mark.parametrize("target", ["lm_head", "fc1", "qkv", "nothing"])
def test_an_adapter_beside_the_language_models_layers_is_refused(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path, target: str
) -> None:
    recipe = dataclasses.replace(RECIPE, lora=Lora(2, 4, 0.0, ("q_proj", target)))
    with pytest.raises(ValueError, match=rf"recipe\.lora\.targets has '{target}'; .* have down_proj, .*, v_proj: name"):
        train(trial, tmp_path, checkpoint, recipe)


def test_the_vision_tower_stays_as_it_was_unless_the_recipe_trains_it(
    trial: dict[str, Artifact], checkpoint: Any, tmp_path: Path
) -> None:
    train(trial, tmp_path / "frozen", checkpoint, gradient_checkpointing=True)
    before, after = load_file(Path(checkpoint.path) / "model.safetensors"), weights(tmp_path / "frozen")
    changed = {
        name.split(".")[0] + "." + name.split(".")[1] for name in after if not torch.equal(after[name], before[name])
    }
    assert all("visual" not in name for name in changed)
    assert changed
