import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_smart_resize

from pipelines.video.budget import (
    FrameBudget,
    UnusableShape,
    image_size,
    normalise,
    patchify,
    sample_indices,
    smart_resize,
    video_frame_size,
)
from pipelines.video.decode import decode_image, resize
from tests.pipelines.video.clips import moving_frames

FOLDER = Path(__file__).parent
GOLDEN = json.loads((FOLDER / "processor_golden.json").read_text())
PIXELS = np.load(FOLDER / "processor_golden.npz")


@pytest.mark.parametrize("case", GOLDEN["grids"], ids=lambda case: str(list(case.values())[:3]))
def test_a_videos_grid_is_the_reference_processors(case):
    budget = FrameBudget(total_pixels=int(case["max_video_tokens"] * 28 * 28 * 0.9))
    height, width = video_frame_size(*case["shape"], case["num_frames"], budget)
    assert [case["num_frames"] // 2, height // 14, width // 14] == case["grid"]


@pytest.mark.parametrize("case", GOLDEN["sampling"], ids=lambda case: str(list(case.values())[:3]))
def test_the_stride_sampler_is_the_reference_processors(case):
    budget = FrameBudget(fps=case["fps"], max_frames=128, sampler="stride")
    assert sample_indices(case["total"], case["source_fps"], budget).tolist() == case["indices"]


def test_smart_resize_is_the_reference_for_random_shapes():
    draw = random.Random(0)
    for _ in range(3000):
        height, width = draw.randint(10, 2000), draw.randint(10, 2000)
        least, most = sorted(draw.sample(range(3136, 10**6), 2))
        factor = draw.choice((16, 28, 32))
        ours = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
        assert ours == reference_smart_resize(height, width, factor, least, most)


def test_rows_of_frames_that_need_no_resize_equal_the_reference_processors():
    rows, grid = patchify(moving_frames(3, 56, 84), FrameBudget())
    assert grid == (2, 4, 6)
    np.testing.assert_allclose(normalise(rows), PIXELS["cut"], atol=1e-6)


def test_rows_of_resized_frames_equal_the_reference_processors():
    size = video_frame_size(60, 100, 5, FrameBudget(min_pixels=56 * 56, max_pixels=56 * 84))
    rows, _ = patchify(resize(moving_frames(5, 60, 100), size), FrameBudget())
    np.testing.assert_allclose(normalise(rows), PIXELS["resized"], atol=1e-6)


def test_a_picture_goes_the_reference_image_processors_way(tmp_path):
    from PIL import Image

    Image.fromarray(moving_frames(1, 70, 101)[0]).save(tmp_path / "a.png")
    frames = decode_image(tmp_path / "a.png", FrameBudget()).frames
    rows, grid = patchify(frames, FrameBudget())
    expected = Qwen2VLImageProcessorPil()(Image.open(tmp_path / "a.png"), return_tensors="np")
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    # Two bicubic filters in 8 bits: they may round a value one or two levels apart.
    np.testing.assert_allclose(normalise(rows), expected["pixel_values"], atol=2.1 / 255 / 0.26)


@pytest.mark.parametrize("total", [2, 3, 7, 60, 61, 1000, 100_000])
@pytest.mark.parametrize("sampler", ["endpoints", "stride"])
def test_samples_are_even_in_number_ascending_and_within_the_budget(total, sampler):
    indices = sample_indices(total, 29.97, FrameBudget(fps=2, max_frames=56, sampler=sampler))
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= 56
    assert indices[0] == 0
    assert indices[-1] < total
    assert (np.diff(indices) > 0).all()


def test_the_endpoints_sampler_sees_the_first_and_the_last_frame():
    assert sample_indices(100, 25.0, FrameBudget(fps=1)).tolist() == [0, 33, 66, 99]


def test_a_clip_at_the_budgets_rate_keeps_every_frame():
    for sampler in ("endpoints", "stride"):
        indices = sample_indices(1040, 2.0, FrameBudget(fps=2, max_frames=2048, sampler=sampler))
        assert indices.tolist() == list(range(1040))


def test_a_single_frame_fills_a_temporal_patch():
    assert sample_indices(1, 30.0, FrameBudget()).tolist() == [0]
    frame = moving_frames(1, 28, 28)
    alone, grid = patchify(frame, FrameBudget())
    twice, _ = patchify(np.repeat(frame, 2, axis=0), FrameBudget())
    assert grid == (1, 2, 2)
    assert (alone == twice).all()


def test_a_video_stays_within_its_total_pixels():
    budget = FrameBudget(total_pixels=8000 * 28 * 28, max_frames=128, min_pixels=28 * 28)
    for num_frames in (2, 16, 56, 128):
        height, width = video_frame_size(720, 1280, num_frames, budget)
        tokens = num_frames // 2 * (height // 28) * (width // 28)
        assert tokens <= 8000


def test_frame_size_overrides_the_pixel_limits():
    budget = FrameBudget(frame_size=(252, 448))
    assert video_frame_size(37, 91, 100, budget) == image_size(5, 5, budget) == (252, 448)
    assert math.prod((252 // 28, 448 // 28)) == 144  # V-NIAH's tokens a frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "random"}, "sampler is 'random'; allowed are endpoints, stride"),
        ({"fps": 0}, "fps is 0"),
        ({"max_frames": 7}, "max_frames is 7; use a multiple of temporal_patch_size 2"),
        ({"min_frames": 800}, "min_frames 800 is above max_frames 768"),
        ({"frame_size": (250, 448)}, "both sides must be multiples of 28"),
    ],
)
def test_an_impossible_budget_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        FrameBudget(**change)
    assert "\n" not in str(caught.value)


def test_a_ribbon_is_unusable():
    with pytest.raises(UnusableShape, match="2010x10"):
        video_frame_size(10, 2010, 2, FrameBudget())
