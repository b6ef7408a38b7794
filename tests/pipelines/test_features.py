"""Features of a frozen vision tower: they rest on the tower's origin, and are those of every trial's checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaProcessor, Qwen2VLImageProcessorPil

from hope_core import get_variant
from hope_core.modeling import load
from pipelines.attention import stock_to_answer
from pipelines.benchmarks.needles import FILM_PREFIX
from pipelines.engine import Artifact, StageConfig
from pipelines.features import FrozenFeaturesIdentity, FrozenTower, open_features, run
from pipelines.finetune import Lora, Recipe
from pipelines.finetune.model import make_model, save_model
from pipelines.pretrained import PREPROCESSOR, PretrainedModel, normalisation_of
from pipelines.video.budget import normalise
from pipelines.video.frames import open_frames
from tests.pipelines.tiny_checkpoint import chat_tokenizer, write_checkpoint
from tests.pipelines.world import MODEL, RECIPE

FROZEN = replace(RECIPE, train_vision=False)
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """A checkpoint whose tower wants its pixels otherwise than CLIP's."""
    folder = tmp_path_factory.mktemp("stock")
    model = write_checkpoint(folder, MODEL)
    (folder / PREPROCESSOR).write_text(json.dumps(HALF))
    return model


@pytest.mark.parametrize(
    "recipe",
    [
        FROZEN,
        replace(FROZEN, precision="bf16"),
        replace(FROZEN, precision="bf16", lora=Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj",))),
    ],
    ids=["fp32", "bf16", "lora"],
)
def test_the_stock_tower_is_byte_for_byte_that_of_a_checkpoint_that_froze_it(
    stock: PretrainedModel, recipe: Recipe, tmp_path: Path
) -> None:
    trained = make_model(
        stock,
        get_variant("hope"),
        recipe,
        chat_tokenizer(),
        seed=3,
        attention="auto",
        device=torch.device("cpu"),
        gradient_checkpointing=False,
    )
    save_model(trained, recipe, chat_tokenizer(), stock.normalisation, tmp_path)
    saved = load(tmp_path).model.visual.state_dict()
    ours = stock_to_answer(stock, getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[recipe.weights_precision]))
    for name, weights in ours.model.visual.state_dict().items():
        assert weights.dtype == saved[name].dtype
        assert torch.equal(weights, saved[name])
    assert normalisation_of(tmp_path) == stock.normalisation == (tuple(HALF["image_mean"]), tuple(HALF["image_std"]))


def test_the_statistics_of_a_processor_that_transformers_saved_are_read(tmp_path: Path) -> None:
    pictures = Qwen2VLImageProcessorPil(**HALF)
    LlavaProcessor(image_processor=pictures, tokenizer=chat_tokenizer()).save_pretrained(tmp_path)
    assert not (tmp_path / PREPROCESSOR).exists()
    assert normalisation_of(tmp_path) == (tuple(HALF["image_mean"]), tuple(HALF["image_std"]))


def test_a_tower_reads_pixels_as_it_was_trained_to(
    stock: PretrainedModel, trial: dict[str, Artifact], tmp_path: Path
) -> None:
    identity = FrozenFeaturesIdentity((FILM_PREFIX,), FrozenTower(stock.identity.weights, "fp32"))
    run(StageConfig(identity, stock), {"frames": trial["frames"]}, tmp_path)
    features, frames = open_features(tmp_path), open_frames(trial["frames"].path)
    model = stock_to_answer(stock, torch.float32)
    for name, span in features.spans.items():
        pixels = torch.from_numpy(normalise(frames.rows(name).copy(), HALF["image_mean"], HALF["image_std"]))
        with torch.no_grad():
            wanted = model.model.get_video_features(pixels, torch.tensor([frames.grid(name)])).pooler_output[0]
        found = features.table[span.first : span.first + span.num_cells].flatten(0, 1)
        torch.testing.assert_close(found, wanted)
