"""Rows behind each other in one: what each is trained on is what it is trained on alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hope_core import Variant, compute_positions, get_variant
from hope_core.modeling import install, vision_tokens
from pipelines.finetune.layout import Batch, packed, padded, padded_ids
from pipelines.finetune.trainer import answer_loss
from pipelines.samples import IGNORED, Medium, Sample
from tests.hope_core.tiny import END, IMAGE, PATCH, START, kinds_of, tiny_model, video_tokens

VIDEOS, IMAGES = [(7, 4, 4), (2, 4, 4)], [(1, 4, 8)]


def rows_of(family: str) -> list[Sample]:
    """Text alone, a video, an image, a shorter video; each of another length, with an answer at its end or inside."""
    media = [[], [("video", VIDEOS[0])], [("image", IMAGES[0])], [("video", VIDEOS[1])]]
    shown = [
        [11, 12, 13, 14, 15],
        [3, *video_tokens(family, 7, 2, 2), 4, 5],
        [START, *[IMAGE] * 8, END, 6],
        [7, 8, *video_tokens(family, 2, 2, 2), 9, 10],
    ]
    samples = []
    for number, (ids, those) in enumerate(zip(shown, media, strict=True)):
        answer = [20 + number, 30 + number]
        labels = [*[IGNORED] * len(ids), *answer, *[IGNORED] * (number % 2)]
        tokens = [*ids, *answer, *[16] * (number % 2)]
        found = tuple(Medium(kind, f"{number}", grid, 1.0) for kind, grid in those)
        samples.append(Sample(str(number), found, tuple(tokens), tuple(labels)))
    return samples


def positions_of(model: Any, variant: Variant, rows: list[Sample]) -> Tensor:
    lengths = torch.tensor([len(sample.input_ids) for sample in rows])
    ids = padded_ids(rows)
    return compute_positions(
        variant,
        ids,
        tokens=vision_tokens(model.config),
        image_grid_thw=torch.tensor(IMAGES),
        video_grid_thw=torch.tensor(VIDEOS),
        attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        scales=0.75 if variant.scalable else None,
    ).position_ids


def learned(model: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a forward."""
    source = torch.Generator().manual_seed(0)
    pixels = [torch.randn(sum(t * h * w for t, h, w in grids), PATCH, generator=source) for grids in (VIDEOS, IMAGES)]
    model.zero_grad()
    logits = model(
        input_ids=batch.input_ids,
        pixel_values_videos=pixels[0],
        video_grid_thw=torch.tensor(VIDEOS),
        pixel_values=pixels[1],
        image_grid_thw=torch.tensor(IMAGES),
        mm_token_type_ids=kinds_of(batch.input_ids),
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    loss, _ = answer_loss(logits, batch.labels)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "name", "attention"),
    [
        ("qwen2_vl", "m_rope", "sdpa"),
        ("qwen2_vl", "hope", "sdpa"),
        ("qwen2_vl", "hope", "eager"),
        ("qwen2_vl", "mhrope", "sdpa"),
        ("qwen2_5_vl", "hope", "sdpa"),
        ("qwen3_vl", "hope", "sdpa"),
    ],
)
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(family: str, name: str, attention: str) -> None:
    model, variant, rows = tiny_model(family), get_variant(name), rows_of(family)
    install(model, variant)
    model.set_attn_implementation(attention)
    positions = positions_of(model, variant, rows)
    loss, gradients = learned(model, padded(rows, positions))
    packed_loss, packed_gradients = learned(model, packed(rows, positions))
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for part, gradient in gradients.items():
        assert (packed_gradients[part] - gradient).norm() <= 1e-5 * gradient.norm(), part


def test_the_text_row_counts_each_rows_tokens_though_the_variants_own_are_fractions() -> None:
    model, variant, rows = tiny_model("qwen2_vl"), get_variant("hope"), rows_of("qwen2_vl")
    positions = positions_of(model, variant, rows)
    text, *own = packed(rows, positions).position_ids[:, 0]
    lengths = [len(sample.input_ids) for sample in rows]
    assert text.tolist() == [token for length in lengths for token in range(length)]
    assert own[0].frac().any()
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(torch.stack(own)[:, start : start + length], positions[:, row, :length])
        start += length


def test_the_first_token_of_a_packed_row_is_not_learned_from_the_row_before() -> None:
    sample = Sample("a", (), (5, 6, 7), (5, 6, 7))
    batch = packed([sample, sample], torch.zeros(3, 2, 3))
    assert batch.labels.tolist() == [[6, 7, IGNORED, 6, 7, IGNORED]]
