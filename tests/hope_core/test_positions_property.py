"""Positions over random layouts equal the slow walk; what holds for every design is checked here too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hope_core import Variant, compute_positions, make_variant
from hope_core.designs import POSITIONS
from tests.hope_core.layouts import Batch, batches, walk

DESIGNS = sorted(POSITIONS)
FACTORS = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def variant_with(design: str) -> Variant:
    frequencies = "four_way" if design == "symmetric" else "contiguous"
    scaling = "absolute_time" if design == "corner_time" else "none"
    return make_variant(design, positions=design, frequencies=frequencies, scaling=scaling)


def rows_of(batch: Batch, variant: Variant, factors: list[float]) -> list[tuple[list[tuple[float, ...]], float]]:
    left = list(factors)
    walked = []
    for spans in batch.rows:
        own = [left.pop(0) for span in spans if span[0] != "text"]
        walked.append(walk(variant.positions.kind, spans, own, batch.wrap))
    return walked


@pytest.mark.parametrize("design", DESIGNS)
@FEW
@given(data=st.data())
def test_every_token_of_any_batch_sits_where_the_slow_walk_puts_it(design: str, data: st.DataObject) -> None:
    batch = data.draw(batches())
    variant = variant_with(design)
    options = {}
    factors = [1.0] * batch.num_items
    if design == "corner_time":
        seconds = data.draw(
            st.lists(st.sampled_from([0.5, 0.6, 1.0, 3.3]), min_size=batch.num_videos, max_size=batch.num_videos)
        )
        options = {"seconds_per_frame": seconds} if seconds else {}
        left = list(seconds)
        is_video = [span[0] == "video" for spans in batch.rows for span in spans if span[0] != "text"]
        factors = [2.0 * left.pop(0) if video else 1.0 for video in is_video]
    elif variant.scalable:
        factors = data.draw(st.lists(st.sampled_from(FACTORS), min_size=batch.num_items, max_size=batch.num_items))
        options = {"scales": factors}

    positions = compute_positions(variant, **batch.inputs, **options)

    assert positions.position_ids.dtype == torch.float32
    assert positions.position_ids.shape == (3, *batch.inputs["input_ids"].shape)
    assert positions.scales == tuple(factors)
    tolerance = 1e-5 if design == "ring" else 0.0
    for row, (places, after) in enumerate(rows_of(batch, variant, factors)):
        real = batch.mask[row].bool()
        expected = torch.tensor(places, dtype=torch.float64).T.to(torch.float32)
        torch.testing.assert_close(positions.position_ids[:, row, real], expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            positions.rope_deltas[row, 0].item(), after - len(places), rtol=1e-6, atol=1e-4 if tolerance else 0.0
        )
    assert not positions.position_ids[:, ~batch.mask.bool()].any()


@pytest.mark.parametrize("design", DESIGNS)
@FEW
@given(data=st.data())
def test_a_row_does_not_depend_on_padding_or_on_the_other_rows(design: str, data: st.DataObject) -> None:
    batch = data.draw(batches())
    variant = variant_with(design)
    options = {"seconds_per_frame": 1.5} if design == "corner_time" else {}
    together = compute_positions(variant, **batch.inputs, **options)
    for row, spans in enumerate(batch.rows):
        single = Batch([spans], [(0, 0)], batch.wrap, batch.merge)
        alone = compute_positions(variant, **single.inputs, **options)
        real = batch.mask[row].bool()
        torch.testing.assert_close(together.position_ids[:, row, real], alone.position_ids[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(together.rope_deltas[row], alone.rope_deltas[0], rtol=0, atol=0)


@pytest.mark.parametrize("design", DESIGNS)
@FEW
@given(data=st.data())
def test_text_alone_is_numbered_as_in_1d_rope(design: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    batch = Batch([[("text", length)] for length in lengths], [(1, 2)] * len(lengths), wrap=False)
    variant = variant_with(design)
    positions = compute_positions(variant, **batch.inputs)
    step = 2 if design == "tad" else 1
    for row, length in enumerate(lengths):
        real = batch.mask[row].bool()
        assert positions.position_ids[:, row, real].tolist() == [[float(step * i) for i in range(length)]] * 3
