"""Training and answering on an emulated accelerator: every tensor lies where the operators that read it want it.

What is wanted is what the same stage gives on the CPU.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hope_core import get_variant
from hope_core.modeling import install
from pipelines import evaluate, features
from pipelines.attention import stock_to_answer
from pipelines.engine import Artifact
from pipelines.features import visual_tokens
from pipelines.finetune import HeldOut, Lora, Recipe
from pipelines.finetune.placement import PROGRESS
from pipelines.finetune.stage import train_here
from pipelines.generate import greedy_answers
from pipelines.prefill import Shown, layout_of
from tests.bench import gpu_check
from tests.pipelines import test_evaluate, world
from tests.pipelines.test_training_resumes import RECIPE, stage_of, weights
from tests.pipelines.tiny_checkpoint import write_checkpoint

LORA = Lora(rank=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj"))


def test_the_emulated_device_refuses_what_cuda_refuses(accelerator: torch.device) -> None:
    there = torch.ones(3, device=accelerator)
    assert (there * 2.0).cpu().tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        torch.ones(3)[there.long()]
    there[torch.tensor([1])] = 5.0
    assert there[torch.tensor([False, True, True])].cpu().tolist() == [5.0, 1.0]


@pytest.mark.parametrize("name", [gpu_check.STOCK, *gpu_check.VARIANTS, gpu_check.PACKED])
def test_a_step_of_the_gpu_check_forgets_no_tensor_on_the_cpu(accelerator: torch.device, name: str) -> None:
    gpu_check.contestants(gpu_check.TINY, accelerator, "sdpa")[name]()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), world.MODEL)


@pytest.mark.parametrize(
    ("recipe", "placement"),
    [
        (dataclasses.replace(RECIPE, train_vision=True), {"micro_batch_size": 2}),
        (dataclasses.replace(RECIPE, lora=LORA), {"packed": True, "gradient_checkpointing": True}),
        (dataclasses.replace(RECIPE, held_out=HeldOut(4, 2, "best")), {"checkpoint_steps": 2}),
    ],
    ids=["whole", "packed adapters", "held out"],
)
def test_a_training_ends_with_the_weights_that_it_has_on_the_cpu(
    trial: dict[str, Artifact],
    checkpoint: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    recipe: Recipe,
    placement: dict[str, Any],
) -> None:
    here, there, resumed = (tmp_path / name for name in ("here", "there", "resumed"))
    for folder in (here, there, resumed):
        folder.mkdir()
    train_here(stage_of(checkpoint, recipe, **placement).config, trial, here)
    request.getfixturevalue("accelerator")
    config = stage_of(checkpoint, recipe, device="emulated", **placement).config
    train_here(config, trial, there)
    if "checkpoint_steps" in placement:
        shutil.copytree(here / PROGRESS, resumed / PROGRESS)
        train_here(config, trial, resumed)
        assert_close(weights(resumed), weights(here))
        assert (resumed / "history.jsonl").read_text().startswith('{"step": 4')
    assert_close(weights(there), weights(here))


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The sums of attention run in another order on the emulated device."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("accelerator")
def test_the_vision_tower_encodes_and_the_questions_are_answered_as_on_the_cpu(
    trial: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, there, here = (tmp_path / name for name in ("encoded", "there", "here"))
    for folder in (encoded, there, here):
        folder.mkdir()
    _, stage = world.trained(tmp_path)
    features.run(stage.config, {"checkpoint": trial["finetune"], "frames": trial["frames"]}, encoded)
    assert_close(*(load_file(path / "features.safetensors") for path in (encoded, trial["features"].path)))
    evaluate.run(test_evaluate.identity(), test_evaluate.inputs(trial), there)
    monkeypatch.undo()
    evaluate.run(test_evaluate.identity(), test_evaluate.inputs(trial), here)
    assert test_evaluate.without_times(there) == test_evaluate.without_times(here)


def test_qwen3_vl_answers_with_the_levels_of_its_tower_as_on_the_cpu(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = write_checkpoint(tmp_path, world.MODEL, family="qwen3_vl")
    pixels, grid = torch.randn(5 * 4 * 4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(1)), (5, 4, 4)

    def answers() -> list[str]:
        model: Any = stock_to_answer(found, torch.float32)
        install(model, get_variant("hope").at_scale(0.5))
        with torch.no_grad():
            visual = visual_tokens(model, pixels.to(model.device), torch.tensor([grid], device=model.device))
        settings = {"video": Shown(grid, 1.5), "scale": None, "max_new_tokens": 5, "chunk_tokens": 16}
        return list(greedy_answers(model, layout_of(model, found.tokenizer()), visual, ["where?", "when?"], **settings))

    here = answers()
    request.getfixturevalue("accelerator")
    assert answers() == here
