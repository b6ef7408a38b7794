"""Qwen3-VL, whose rows hold a time before every cell and whose tower feeds several layers: against its own forward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hope_core import get_variant
from hope_core.modeling import install, vision_tokens
from pipelines.attention import stock_to_answer
from pipelines.benchmarks.needles import FILM_PREFIX
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.datasets import Turn
from pipelines.engine import Artifact, StageConfig
from pipelines.features import FrozenFeaturesIdentity, FrozenTower, open_features, run, visual_tokens
from pipelines.generate import greedy_answers, question_sources
from pipelines.models import text_ids
from pipelines.prefill import Reader, Shown, layout_of, marked_sources, video_sources
from pipelines.pretrained import PretrainedModel
from pipelines.samples import IGNORED, Medium, build_sample, conversation, default_system
from pipelines.video.budget import normalise
from pipelines.video.frames import open_frames
from tests.pipelines.tiny_checkpoint import write_checkpoint
from tests.pipelines.world import MODEL

GRID, SECONDS = (5, 4, 4), 1.5
VIDEO = Shown(GRID, SECONDS)
VARIANTS = ("m_rope", "mrope_interleave", "hope")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    return write_checkpoint(tmp_path_factory.mktemp("qwen3"), MODEL, family="qwen3_vl")


@pytest.fixture(scope="module")
def model(checkpoint: PretrainedModel) -> Any:
    """Its weights are drawn so wide that every part of it shows in the logits."""
    found = stock_to_answer(checkpoint, torch.float32)
    with torch.no_grad():
        for number, weights in enumerate(found.parameters()):
            if weights.ndim > 1:
                weights.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    return found


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(5 * 4 * 4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(1))


def placeholders(model: Any) -> Tensor:
    """The cells of the video as the model is given them."""
    return torch.full((GRID[0], 4), vision_tokens(model.config).video)


def given(model: Any, checkpoint: PretrainedModel, prompt: str) -> Tensor:
    """A question's row as the model is given it, (1, S)."""
    layout = layout_of(model, checkpoint.tokenizer())
    return question_sources(layout, prompt, marked_sources(placeholders(model), SECONDS, layout))[None]


def whole(model: Any, ids: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """The arguments of the model's own forward."""
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == vision_tokens(model.config).video).long(),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([GRID]),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_on_kept_keys_have_the_logits_of_the_models_own_forward(
    model: Any, checkpoint: PretrainedModel, pixels: Tensor, name: str
) -> None:
    variant = get_variant(name)
    install(model, variant.at_scale(0.75) if variant.scalable else variant)
    layout = layout_of(model, checkpoint.tokenizer())
    with torch.no_grad():
        visual = visual_tokens(model, pixels, torch.tensor([GRID]))
        assert visual.shape == (20, 2 * MODEL.hidden_size)
        cells = marked_sources(-1 - torch.arange(20).reshape(5, 4), SECONDS, layout)
        reader = Reader(model, visual, scale=None, capacity=200, chunk_tokens=7)
        for prompt in ("where?", "when?"):
            found = reader.logits(question_sources(layout, prompt, cells)[None], [VIDEO], last=4)
            wanted = model(**whole(model, given(model, checkpoint, prompt), pixels)).logits[:, -4:]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert reader.read_tokens == 20 < reader.naive_tokens
        shallow = Reader(model, visual[:, : MODEL.hidden_size], scale=None, capacity=200, chunk_tokens=7)
        without = shallow.logits(question_sources(layout, "when?", cells)[None], [VIDEO], last=4)
        assert (without - wanted).abs().max() > 0.1  # what the deeper layer is fed shows


def test_answers_are_those_of_generate(model: Any, checkpoint: PretrainedModel, pixels: Tensor) -> None:
    install(model, get_variant("hope").at_scale(0.5))
    tokenizer = checkpoint.tokenizer()
    prompts = ["where?", "what is it?"]
    with torch.no_grad():
        visual = visual_tokens(model, pixels, torch.tensor([GRID]))
    settings = {"video": VIDEO, "scale": None, "max_new_tokens": 5, "chunk_tokens": 16}
    found = list(greedy_answers(model, layout_of(model, tokenizer), visual, prompts, **settings))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = given(model, checkpoint, prompt)
        made = model.generate(**whole(model, ids, pixels), max_new_tokens=5, do_sample=False)
        assert answer == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_variant_that_draws_its_scale_reads_without_one(
    model: Any, checkpoint: PretrainedModel, pixels: Tensor
) -> None:
    layout = layout_of(model, checkpoint.tokenizer())
    cells = marked_sources(-1 - torch.arange(20).reshape(5, 4), SECONDS, layout)
    logits = []
    with torch.no_grad():
        visual = visual_tokens(model, pixels, torch.tensor([GRID]))
        for variant in (get_variant("hope"), get_variant("hope").at_scale(0.5)):
            install(model, variant)
            reader = Reader(model, visual, scale=None, capacity=200, chunk_tokens=100)
            logits.append(reader.logits(question_sources(layout, "when?", cells)[None], [VIDEO], last=1))
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_a_question_is_asked_in_the_row_that_training_shows(model: Any, checkpoint: PretrainedModel) -> None:
    layout = layout_of(model, checkpoint.tokenizer())
    turns = (Turn("user", "<video>\nwhere?"), Turn("assistant", "there"))
    medium = Medium("video", "a", GRID, SECONDS)
    pieces = conversation(turns, [medium], chat=True, system=default_system(timestamps=True))
    row = build_sample("a", pieces, layout, encode=lambda text: text_ids(layout.tokenizer, text), cutoff_len=None)
    start = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    assert given(model, checkpoint, "\nwhere?")[0].tolist() == list(row.input_ids[:start])


def test_the_features_of_a_film_hold_what_every_layer_is_fed_and_a_needle_has_the_time_of_its_place(
    checkpoint: PretrainedModel, trial: dict[str, Artifact], tmp_path: Path
) -> None:
    identity = FrozenFeaturesIdentity((FILM_PREFIX,), FrozenTower(checkpoint.identity.weights, "fp32"))
    run(StageConfig(identity, checkpoint), {"frames": trial["frames"]}, tmp_path)
    features, frames = open_features(tmp_path), open_frames(trial["frames"].path)
    model = stock_to_answer(checkpoint, torch.float32)
    film, other, *_ = features.spans
    span = features.spans[film]
    with torch.no_grad():
        patches = torch.from_numpy(normalise(frames.rows(film).copy(), *checkpoint.normalisation))
        tower = model.model.visual(patches, grid_thw=torch.tensor([frames.grid(film)]), return_dict=True)
    wanted = torch.cat([tower.pooler_output, tower.deepstack_features[0]], dim=-1)
    torch.testing.assert_close(features.table[span.first : span.first + span.num_cells].flatten(0, 1), wanted)

    install(model, get_variant("m_rope"))
    video = NeedleVideo("", film, 0, 3, 3, None, ((1, other),), (), before="see ")
    row = video_sources(video, features, layout_of(model, checkpoint.tokenizer()))
    row[row < 0] = vision_tokens(model.config).video
    cell = "<|vision_start|>" + "<|video_pad|>" * features.tokens_per_cell + "<|vision_end|>"
    assert checkpoint.tokenizer().decode(row) == "see " + "".join(
        f"<{time} seconds>{cell}" for time in ("0.2", "1.2", "2.2", "3.2")
    )
