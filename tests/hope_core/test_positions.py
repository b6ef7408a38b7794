"""compute_positions: layouts at the edges, padding, scales, and what it says about bad input."""

from typing import Any

import pytest
import torch

from hope_core import compute_positions, get_variant, list_variants, make_variant
from tests.hope_core.layouts import TOKENS, Batch

M_ROPE = get_variant("m_rope")
HOPE = get_variant("hope")


def batch(*rows: list[Any], pads: list[tuple[int, int]] | None = None, wrap: bool = True) -> dict[str, Any]:
    return Batch(list(rows), pads or [(0, 0)] * len(rows), wrap).inputs


def temporal_row(positions: Any, row: int = 0) -> list[float]:
    return positions.position_ids[0, row].tolist()


def test_text_after_a_long_video_resumes_after_its_last_frame() -> None:
    positions = compute_positions(M_ROPE, **batch([("video", 12, 2, 2), ("text", 3)], wrap=False))
    assert temporal_row(positions)[-3:] == [12, 13, 14]
    assert positions.rope_deltas.item() == 15 - 51


def test_the_hf5_rule_resumes_inside_a_long_video_and_decoding_goes_on_from_there() -> None:
    positions = compute_positions(get_variant("m_rope_hf5"), **batch([("video", 12, 2, 2), ("text", 3)], wrap=False))
    assert temporal_row(positions)[-3:] == [2, 3, 4]
    assert positions.rope_deltas.item() == 5 - 51


def test_tad_counts_text_twice() -> None:
    positions = compute_positions(
        get_variant("tad_rope"), **batch([("text", 2), ("video", 2, 1, 2), ("text", 2)], wrap=False)
    )
    assert temporal_row(positions) == [0, 2, 4, 5, 7, 8, 10, 12]
    assert positions.rope_deltas.item() == 14 - 8


def test_a_hope_video_steps_by_its_factor_and_the_text_follows_its_last_frame() -> None:
    positions = compute_positions(HOPE.at_scale(0.75), **batch([("video", 3, 3, 1), ("text", 2)], wrap=False))
    assert temporal_row(positions) == [0, 0, 0, 0.75, 0.75, 0.75, 1.5, 1.5, 1.5, 2.5, 3.5]
    assert positions.position_ids[1, 0].tolist() == [-1, 0, 1, -0.25, 0.75, 1.75, 0.5, 1.5, 2.5, 2.5, 3.5]


@pytest.mark.parametrize("name", list_variants())
def test_videos_first_last_adjacent_one_frame_and_one_by_one_all_find_a_place(name: str) -> None:
    rows = [
        [("video", 1, 1, 1), ("video", 3, 2, 1), ("text", 2), ("image", 1, 1)],
        [("text", 1)],
        [("image", 2, 3), ("image", 1, 4), ("video", 2, 1, 1)],
    ]
    variant = get_variant(name)
    options: dict[str, Any] = {"seconds_per_frame": 1.0} if name == "qwen2_5_time" else {}
    if variant.scalable:
        options["scales"] = 0.5
    for wrap in (True, False):
        positions = compute_positions(variant, **batch(*rows, pads=[(0, 4), (2, 0), (1, 2)], wrap=wrap), **options)
        assert positions.position_ids.isfinite().all()


def test_fractional_steps_do_not_drift_over_a_long_row() -> None:
    number, scale = 4000, 0.7
    positions = compute_positions(HOPE.at_scale(scale), **batch([("video", 2, 1, 1)] * number, wrap=False))
    expected = (torch.arange(number, dtype=torch.float64) * (1 + scale)).float()
    assert torch.equal(positions.position_ids[:, 0, ::2], expected.expand(3, -1))
    assert positions.rope_deltas.item() == pytest.approx(number * (1 + scale) - 2 * number, rel=1e-6)


def test_a_vision_start_without_a_block_is_text() -> None:
    ids = torch.tensor([[5, TOKENS.vision_start, 5, TOKENS.vision_end, TOKENS.vision_start]])
    positions = compute_positions(M_ROPE, ids, tokens=TOKENS)
    assert temporal_row(positions) == [0, 1, 2, 3, 4]


def test_no_mask_and_a_mask_of_ones_are_the_same() -> None:
    inputs = batch([("text", 2), ("video", 2, 2, 2), ("text", 1)])
    ones = torch.ones_like(inputs["input_ids"])
    a = compute_positions(M_ROPE, **inputs)
    b = compute_positions(M_ROPE, **(inputs | {"attention_mask": ones}))
    assert torch.equal(a.position_ids, b.position_ids)
    assert torch.equal(a.rope_deltas, b.rope_deltas)


def test_a_row_that_is_all_padding_has_positions_too() -> None:
    inputs = batch([("text", 3)])
    positions = compute_positions(M_ROPE, **(inputs | {"attention_mask": torch.zeros_like(inputs["input_ids"])}))
    assert positions.position_ids.shape == (3, 1, 3)
    assert positions.position_ids.isfinite().all()


def test_frames_that_stand_alone_between_timestamps_are_blocks_of_one_video() -> None:
    frame = [TOKENS.vision_start, *[TOKENS.video] * 4, TOKENS.vision_end]
    ids = torch.tensor([[5, 7, *frame, 7, *frame, 7, *frame, 5]])
    grid = torch.tensor([[3, 4, 4]])
    positions = compute_positions(HOPE, ids, tokens=TOKENS, video_grid_thw=grid, scales=[2.0])
    single = torch.tensor([[1, 4, 4]] * 3)
    one_by_one = compute_positions(HOPE, ids, tokens=TOKENS, video_grid_thw=single, scales=[0.5, 1.0, 1.5])
    assert positions.scales == (2.0,)
    # no block has a second frame for the factor to move
    assert torch.equal(positions.position_ids, one_by_one.position_ids)
    assert temporal_row(positions)[3:7] == [3] * 4
    assert temporal_row(positions)[7:10] == [4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"video_grid_thw": None},
            "video_grid_thw has 0 rows, so 8 tokens have no grid",
        ),
        ({"video_grid_thw": [[2, 4, 4], [2, 4, 4]]}, "video_grid_thw has 2 rows, the tokens hold 1 video blocks"),
        ({"image_grid_thw": [[1, 4, 4]]}, "image_grid_thw has 1 rows, the tokens hold 0 image blocks"),
        ({"video_grid_thw": [[3, 4, 4]]}, r"row 0: video block of 8 tokens; video grid 0 needs 12 \(3 x 2 x 2"),
        (
            {"video_grid_thw": [[1, 4, 4]]},
            "video_grid_thw has 1 rows, so 4 tokens have no grid",
        ),
        ({"video_grid_thw": [[2, 8, 8]]}, r"row 0: video block of 8 tokens; video grid 0 needs 32"),
        ({"video_grid_thw": [[2, 5, 4]]}, r"video grid \(2, 5, 4\).*multiples of spatial_merge_size 2"),
        ({"video_grid_thw": [[0, 4, 4]]}, r"video grid \(0, 4, 4\).*at least 1"),
        ({"video_grid_thw": [2, 4, 4]}, r"video_grid_thw has shape \(3,\); expected"),
        ({"image_grid_thw": [1, 4, 4]}, r"image_grid_thw has shape \(3,\); expected"),
        ({"attention_mask": [[1, 1, 1]]}, r"attention_mask has shape \(1, 3\)"),
        ({"input_ids": [1, 2, 3]}, r"input_ids has shape \(3,\)"),
        ({"scales": [1.0, 1.0]}, "scales has 2 numbers; the batch holds 1 images and videos"),
        ({"scales": 0.0}, "every factor must be a finite number above zero"),
        ({"scales": float("inf")}, "every factor must be a finite number above zero"),
        ({"scales": -1.0}, "every factor must be a finite number above zero"),
        ({"scales": float("nan")}, "every factor must be a finite number above zero"),
    ],
)
def test_wrong_input_is_refused_with_what_was_found_and_expected(change: dict[str, Any], message: str) -> None:
    inputs = batch([("text", 2), ("video", 2, 2, 2), ("text", 1)])
    tensors = {k: torch.tensor(v) if isinstance(v, list) and k != "scales" else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message) as error:
        compute_positions(M_ROPE, **(inputs | tensors))
    assert "\n" not in str(error.value)


def test_a_video_cut_off_by_the_end_of_its_row_is_refused() -> None:
    inputs = batch([("text", 2), ("video", 2, 2, 2)], [("video", 2, 2, 2), ("text", 2)], wrap=False)
    inputs["input_ids"] = inputs["input_ids"][:, :-1]
    with pytest.raises(ValueError, match="row 0: video block of 7 tokens"):
        compute_positions(M_ROPE, **inputs)


@pytest.mark.parametrize(("block", "after"), [((5, 2, 2), 2 * 4 + 1), ((2, 5, 2), 3 * 4 + 1), ((2, 2, 5), 4 * 4 + 1)])
def test_what_follows_a_block_with_strides_follows_its_farthest_token(block: tuple[int, int, int], after: int) -> None:
    corner = {"kind": "corner", "strides": [2, 3, 4]}
    strided = make_variant("strided", positions=corner, frequencies="contiguous", scaling="none")
    positions = compute_positions(strided, **batch([("video", *block), ("text", 1)], wrap=False))
    assert positions.position_ids[:, 0, -1].tolist() == [after] * 3


def test_a_block_that_begins_a_row_is_told_by_that_row() -> None:
    ids = torch.tensor([[5] * 7, [TOKENS.video] * 7])
    with pytest.raises(ValueError, match="row 1: video block of 7 tokens; video grid 0 needs 8"):
        compute_positions(M_ROPE, ids, tokens=TOKENS, video_grid_thw=torch.tensor([[2, 4, 4]]))


def test_only_a_video_may_be_given_frame_by_frame() -> None:
    ids = torch.tensor([[5, *[TOKENS.image] * 4]])
    with pytest.raises(ValueError, match="row 0: image block of 4 tokens; image grid 0 needs 8"):
        compute_positions(M_ROPE, ids, tokens=TOKENS, image_grid_thw=torch.tensor([[2, 4, 4]]))


def test_a_video_given_frame_by_frame_has_one_time_for_all_its_frames() -> None:
    frame = [TOKENS.vision_start, *[TOKENS.video] * 4, TOKENS.vision_end]
    ids, grid = torch.tensor([[5, *frame, *frame]]), torch.tensor([[2, 4, 4]])
    timed = get_variant("qwen2_5_time")
    positions = compute_positions(timed, ids, tokens=TOKENS, video_grid_thw=grid, seconds_per_frame=[0.5])
    with pytest.raises(ValueError, match="seconds_per_frame has 2 numbers; the batch holds 1 videos"):
        compute_positions(timed, ids, tokens=TOKENS, video_grid_thw=grid, seconds_per_frame=[0.5, 0.5])
    assert positions.scales == (1.0,)


def test_a_block_never_runs_on_into_the_next_row() -> None:
    video = TOKENS.video
    ids = torch.tensor([[5, 5, *[video] * 7], [video] * 9])
    with pytest.raises(ValueError, match="row 0: video block of 7 tokens; video grid 0 needs 8"):
        compute_positions(M_ROPE, ids, tokens=TOKENS, video_grid_thw=torch.tensor([[2, 4, 4], [2, 4, 4]]))


def test_a_video_given_frame_by_frame_must_have_all_its_frames_in_its_row() -> None:
    frame = [TOKENS.vision_start, *[TOKENS.video] * 4, TOKENS.vision_end]
    grid = torch.tensor([[2, 4, 4]])
    with pytest.raises(ValueError, match="row 0: video grid 0 still needs 1 of its 2 frames"):
        compute_positions(M_ROPE, torch.tensor([[5, *frame]]), tokens=TOKENS, video_grid_thw=grid)
    with pytest.raises(
        ValueError, match=r"row 1: video frame of 4 tokens; .* still needs 1 frames of 4 tokens in row 0"
    ):
        compute_positions(M_ROPE, torch.tensor([[5, *frame], [5, *frame]]), tokens=TOKENS, video_grid_thw=grid)


def test_masking_away_part_of_a_video_is_a_block_with_tokens_too_few() -> None:
    inputs = batch([("text", 2), ("video", 2, 2, 2), ("text", 1)], wrap=False)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, 5] = 0
    with pytest.raises(ValueError, match="video block of 7 tokens"):
        compute_positions(M_ROPE, **(inputs | {"attention_mask": mask}))


def test_a_dynamic_variant_needs_a_factor_and_says_where_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"hope: dynamic scaling has no factor.*at_scale.*draw_scales"):
        compute_positions(HOPE, **batch([("video", 2, 2, 2)]))
    assert temporal_row(compute_positions(HOPE, **batch([("text", 3)]))) == [0, 1, 2]  # text has nothing to scale


def test_a_factor_for_one_video_of_a_variant_without_time_is_refused() -> None:
    inputs = batch([("video", 2, 1, 1), ("video", 2, 1, 1)], wrap=False)
    with pytest.raises(ValueError, match=r"vanilla: scales \[1\.0, 2\.0\] have no effect on it"):
        compute_positions(get_variant("vanilla"), **inputs, scales=[1.0, 2.0])


def test_a_generator_draws_one_factor_per_image_and_video_of_the_published_choices() -> None:
    rows = [[("video", 2, 1, 1)] * 40, [("image", 1, 1)] * 40]
    draws = [
        compute_positions(HOPE, **batch(*rows), generator=torch.Generator().manual_seed(seed)).scales
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 80
    assert set(draws[0]) == {0.5, 0.75, 1.0, 1.25, 1.5}


def test_scales_replace_the_factor_of_a_variant() -> None:
    inputs = batch([("video", 3, 2, 2), ("text", 1)])
    videorope = get_variant("videorope")
    assert compute_positions(videorope, **inputs).scales == (2.0,)
    a = compute_positions(videorope, **inputs, scales=1.5)
    b = compute_positions(videorope.at_scale(1.5), **inputs)
    assert torch.equal(a.position_ids, b.position_ids)


def test_a_factor_for_a_variant_without_a_temporal_step_is_refused_but_one_is_none() -> None:
    inputs = batch([("video", 3, 2, 2), ("text", 1)])
    with pytest.raises(
        ValueError, match=r"vanilla: scales .* no effect .*positions sequential has no step between frames"
    ):
        compute_positions(get_variant("vanilla"), **inputs, scales=2.0)
    assert compute_positions(get_variant("vanilla"), **inputs, scales=1.0).scales == (1.0,)


def test_a_dynamic_variant_takes_the_factors_that_it_is_given() -> None:
    inputs = batch([("video", 2, 1, 1), ("image", 1, 2), ("video", 2, 1, 1)], wrap=False)
    positions = compute_positions(HOPE, **inputs, scales=[0.5, 3.0, 1.5])
    assert positions.scales == (0.5, 3.0, 1.5)
    assert temporal_row(positions) == [0, 0.5, 1.5, 1.5, 2.5, 4]


def test_absolute_time_takes_seconds_per_video_and_leaves_images_alone() -> None:
    inputs = batch([("video", 3, 1, 1), ("image", 1, 2), ("video", 2, 1, 1)], wrap=False)
    variant = get_variant("qwen2_5_time")
    positions = compute_positions(variant, **inputs, seconds_per_frame=[1.5, 0.7])
    assert positions.scales == (3.0, 1.0, 1.4)
    assert temporal_row(positions) == [0, 3, 6, 7, 7, 9, 10]  # 1.4 is floored
    diagonal = make_variant("d", positions="diagonal", frequencies="temporal_low", scaling="absolute_time")
    fractional = compute_positions(diagonal, **inputs, seconds_per_frame=[1.5, 0.7])
    assert temporal_row(fractional)[-1] == pytest.approx(9.4)
    with pytest.raises(ValueError, match="absolute_time needs seconds_per_frame"):
        compute_positions(variant, **inputs)
    with pytest.raises(ValueError, match=r"seconds_per_frame has 3 numbers; the batch holds 2 videos$"):
        compute_positions(variant, **inputs, seconds_per_frame=[1.0, 1.0, 1.0])


def test_scope_vision_hides_time_from_visual_tokens_only() -> None:
    variant = HOPE.replace(frequencies={"kind": "temporal_zero", "scope": "vision"}).at_scale(1.5)
    inputs = batch([("text", 3), ("video", 2, 1, 2), ("text", 2)], wrap=False)
    hidden, shown = compute_positions(variant, **inputs), compute_positions(HOPE.at_scale(1.5), **inputs)
    assert temporal_row(hidden) == [0, 1, 2, 0, 0, 0, 0, 5.5, 6.5]
    assert torch.equal(hidden.position_ids[1:], shown.position_ids[1:])
    assert torch.equal(hidden.rope_deltas, shown.rope_deltas)


def test_positions_are_on_the_device_of_the_ids_and_the_ids_are_not_changed() -> None:
    inputs = batch([("text", 3), ("video", 2, 1, 2)])
    before = inputs["input_ids"].clone()
    positions = compute_positions(M_ROPE, **inputs)
    assert positions.position_ids.device == before.device
    assert torch.equal(inputs["input_ids"], before)
