"""What every variant must hold, registered or mixed. A new variant inherits all of it by being registered."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hope_core import Variant, apply_rotary, compute_positions, get_variant, list_variants, make_variant, rotary_tables
from hope_core.modeling import install, load, variant_of
from tests.hope_core.layouts import Batch
from tests.hope_core.tiny import assert_generates_as_without_cache, tiny_inputs, tiny_model

HEADS, HEAD_DIM, THETA = 4, 32, 1e4
MIXED = [
    make_variant("low_dynamic", positions="diagonal", frequencies="temporal_low", scaling="dynamic"),
    make_variant(
        "zero_fixed", positions="diagonal", frequencies="temporal_zero", scaling={"kind": "fixed", "factor": 2.0}
    ),
    make_variant("high_diagonal", positions="diagonal", frequencies="temporal_high"),
    make_variant("zero_vision", positions="diagonal", frequencies={"kind": "temporal_zero", "scope": "vision"}),
    make_variant("corner_low_dynamic", positions="corner", frequencies="temporal_low", scaling="dynamic"),
    make_variant("reset_interleaved", positions="spatial_reset", frequencies="interleaved", scaling="dynamic"),
    make_variant("sequential_zero", positions="sequential", frequencies="temporal_zero"),
    make_variant("diagonal_time", positions="diagonal", frequencies="interleaved", scaling="absolute_time"),
]
VARIANTS = [get_variant(name) for name in list_variants()] + MIXED
ROWS = Batch(
    [
        [("text", 3), ("video", 5, 2, 3), ("text", 2), ("image", 3, 2)],
        [("image", 1, 1), ("text", 4), ("video", 2, 4, 1)],
    ],
    [(0, 0), (2, 1)],
    wrap=True,
)
TEXT = Batch([[("text", 9)]], [(0, 0)], wrap=False)


def settled(variant: Variant) -> Variant:
    """With a factor, where one is missing."""
    return variant.at_scale(0.75) if variant.scalable and variant.factor is None else variant


def place(variant: Variant, batch: Batch) -> Tensor:
    seconds = {"seconds_per_frame": 0.8} if variant.scaling.kind == "absolute_time" else {}
    return compute_positions(settled(variant), **batch.inputs, **seconds).position_ids


def tables(variant: Variant, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    return rotary_tables(variant, position_ids, head_dim=HEAD_DIM, rope_theta=THETA, num_key_value_heads=HEADS)


def per_head(table: Tensor) -> Tensor:
    """(B, heads, S, d) for every allocation."""
    return table if table.ndim == 4 else table[:, None].expand(-1, HEADS, -1, -1)


def axes_of(variant: Variant) -> Tensor:
    """(heads, d): the axis of every number of a head, both halves."""
    axes = variant.slot_axes(HEAD_DIM, HEADS)
    return torch.cat((axes, axes), -1).expand(HEADS, HEAD_DIM)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
class TestEveryVariant:
    def test_shapes_and_types(self, variant: Variant) -> None:
        cos, sin = tables(variant, place(variant, ROWS))
        assert cos.dtype == sin.dtype == torch.float32
        rows, length = ROWS.inputs["input_ids"].shape
        assert cos.shape == sin.shape
        assert cos.shape in ((rows, length, HEAD_DIM), (rows, HEADS, length, HEAD_DIM))

    def test_rotation_keeps_the_norm(self, variant: Variant) -> None:
        position_ids = place(variant, ROWS)
        rows, length = position_ids.shape[1:]
        q, k = torch.randn(rows, 8, length, HEAD_DIM), torch.randn(rows, HEADS, length, HEAD_DIM)
        for before, after in zip((q, k), apply_rotary(q, k, *tables(variant, position_ids)), strict=True):
            torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=1e-5)

    def test_text_alone_is_1d_rope_on_rotated_slots(self, variant: Variant) -> None:
        position_ids = place(variant, TEXT)
        step = variant.positions.text_step
        assert position_ids.tolist() == [[[float(step * i) for i in range(9)]]] * 3
        angle = torch.arange(0, 9 * step, step)[:, None] * variant.inverse_frequencies(HEAD_DIM, THETA)
        angle = torch.cat((angle, angle), -1)
        turns = (axes_of(variant) >= 0)[None, :, None]
        cos, sin = (per_head(table) for table in tables(variant, position_ids))
        torch.testing.assert_close(cos, torch.where(turns, angle.cos(), 1.0), rtol=0, atol=1e-6)
        torch.testing.assert_close(sin, torch.where(turns, angle.sin(), 0.0), rtol=0, atol=1e-6)

    def test_slots_not_on_an_axis_do_not_feel_a_shift_along_it(self, variant: Variant) -> None:
        position_ids = place(variant, ROWS)
        for axis in range(3):
            shifted = position_ids.clone()
            shifted[axis] += 7.25
            # VRoPE's fourth index is made of all three
            same = ((axes_of(variant) != axis) & (axes_of(variant) != 3))[None, :, None]
            for before, after in zip(tables(variant, position_ids), tables(variant, shifted), strict=True):
                before, after = per_head(before), per_head(after)
                assert torch.equal(before.masked_fill(~same, 0), after.masked_fill(~same, 0))
                assert (before != after).any() or (axes_of(variant) == axis).sum() == 0

    def test_scores_depend_on_the_distance_only(self, variant: Variant) -> None:
        position_ids = place(variant, ROWS)
        rows, length = position_ids.shape[1:]
        q, k = torch.randn(rows, 8, length, HEAD_DIM), torch.randn(rows, HEADS, length, HEAD_DIM)

        def scores(position_ids: Tensor) -> Tensor:
            turned_q, turned_k = apply_rotary(q, k, *tables(variant, position_ids))
            return turned_q @ turned_k.repeat_interleave(2, 1).transpose(2, 3)

        moved = position_ids + torch.tensor([5.0, 11.0, 2.0]).view(3, 1, 1)
        torch.testing.assert_close(scores(moved), scores(position_ids), rtol=1e-4, atol=2e-4)

    def test_the_same_input_gives_the_same_positions_whatever_ran_before(self, variant: Variant) -> None:
        first = place(variant, ROWS)
        cos, sin = tables(variant, first)
        for other in ("hope", "m_rope", "vrope"):
            tables(get_variant(other), place(get_variant(other), ROWS))
        again_cos, again_sin = tables(variant, place(variant, ROWS))
        assert torch.equal(cos, again_cos)
        assert torch.equal(sin, again_sin)

    def test_cached_generation_equals_the_loop_without_a_cache(self, variant: Variant) -> None:
        model = tiny_model("qwen2_5_vl")
        install(model, settled(variant))
        inputs = tiny_inputs("qwen2_5_vl") | {"second_per_grid_ts": torch.tensor([0.8])}
        assert_generates_as_without_cache(model, inputs)

    def test_a_saved_model_comes_back_with_the_variant_and_the_same_logits(
        self, variant: Variant, tmp_path: Any
    ) -> None:
        model = tiny_model("qwen2_5_vl")
        inputs = tiny_inputs("qwen2_5_vl") | {"second_per_grid_ts": torch.tensor([0.8])}
        install(model, settled(variant))
        model.save_pretrained(tmp_path)
        loaded = load(tmp_path).eval()
        assert variant_of(loaded) == settled(variant)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
