import json

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import read_dataset
from pipelines.video.budget import FrameBudget
from pipelines.video.decode import decode_video
from pipelines.video.synthetic import (
    MARKERS,
    haystack_frames,
    needle_frame,
    write_needle_benchmark,
    write_training_set,
)

ALL_FRAMES = FrameBudget(fps=2, max_frames=2048, patch_size=8, min_pixels=1024, max_pixels=1024)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_training_set(folder, num_videos=100, num_needles=4, num_twins=1, seed=3)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    write_needle_benchmark(folder, num_films=2, film_frames=60, seed=3, num_renderings=2)
    return folder


def markers_and_values(frames, benchmark):
    """The needles of a clip read back with the evaluation's pictures: (marker, value) by cell."""
    records = json.loads((benchmark / "needles.json").read_text())
    pictures = np.stack([np.asarray(Image.open(benchmark / record["path"])) for record in records]).astype(float)
    seen = []
    for frame in frames[::2]:
        distance = np.abs(pictures - frame).mean(axis=(1, 2, 3))
        if distance.min() < 25:
            best = records[int(distance.argmin())]
            seen.append((best["marker"], best["value"]))
    return seen


def test_the_answers_are_what_the_encoded_clips_show(training, benchmark):
    for record in read_dataset(training / "train.json", media_root=training).records:
        needles = markers_and_values(decode_video(record.media[0].path, ALL_FRAMES).frames, benchmark)
        assert len(needles) == 4
        expected = {}
        for marker in {marker for marker, _ in needles}:
            values = [value for other, value in needles if other == marker]
            if len(values) == 1:
                expected[f"find {marker}"] = values[0]
            else:
                expected |= {f"first {marker}": values[0], f"last {marker}": values[-1]}
        texts = [turn.text.removeprefix("<video>\n") for turn in record.turns]
        assert dict(zip(texts[::2], texts[1::2], strict=True)) == expected


def test_clips_have_the_asked_number_of_cells_and_every_marker_is_used(training):
    lengths = {len(decode_video(path, ALL_FRAMES).frames) for path in training.glob("videos/*.mp4")}
    assert len(lengths) > 3
    assert min(lengths) >= 16
    assert max(lengths) <= 32
    assert all(name in (training / "train.json").read_text() for name in MARKERS)


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(training, tmp_path):
    write_training_set(tmp_path / "same", num_videos=100, num_needles=4, num_twins=1, seed=3)
    write_training_set(tmp_path / "other", num_videos=100, num_needles=4, num_twins=1, seed=4)
    assert (tmp_path / "same" / "train.json").read_bytes() == (training / "train.json").read_bytes()
    assert (tmp_path / "other" / "train.json").read_bytes() != (training / "train.json").read_bytes()
    for name in ("00000.mp4", "00099.mp4"):
        first, second, third = (
            decode_video(folder / "videos" / name, ALL_FRAMES).frames
            for folder in (training, tmp_path / "same", tmp_path / "other")
        )
        assert np.array_equal(first, second)
        assert not np.array_equal(first, third)


def test_no_evaluation_film_shows_a_training_scene(training, benchmark):
    trained = np.concatenate([decode_video(path, ALL_FRAMES).frames for path in training.glob("videos/*.mp4")])
    films = [decode_video(path, ALL_FRAMES).frames[::10] for path in benchmark.glob("haystack/*.mp4")]
    for picture in np.concatenate(films):
        # One scene in two files is 2 to 10 levels apart after H.264, two scenes are 28 and more.
        assert np.abs(trained.astype(np.int16) - picture).mean(axis=(1, 2, 3)).min() > 15


def test_the_benchmark_has_a_needle_of_every_marker_value_and_rendering_in_longvas_format(benchmark):
    records = json.loads((benchmark / "needles.json").read_text())
    assert len({(r["marker"], r["value"], r["rendering"]) for r in records}) == len(records) == 8 * 10 * 2
    for record in records:
        assert record["prompt"] == f"find {record['marker']}"
        assert record["answer"] == record["value"]
        assert Image.open(benchmark / record["path"]).size == (32, 32)
    assert len(decode_video(benchmark / "haystack" / "001.mp4", ALL_FRAMES).frames) == 60


def test_h264_leaves_a_needle_legible_and_a_haystack_alive():
    frames = haystack_frames(np.random.default_rng(0), 40, 32)
    assert frames.shape == (40, 32, 32, 3)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 3
    one, seven = (needle_frame(np.random.default_rng(0), "red", value, 32).astype(int) for value in "17")
    assert np.abs(one - seven).max() > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_needles": 9}, "num_needles is 9; a clip of 8 cells holds 1 to 8"),
        ({"cells_min": 4}, "num_needles is 8; a clip of 4 cells holds 1 to 4"),
        ({"num_twins": 5}, "num_twins is 5; 8 needles allow 0 to 4 pairs of twins"),
        ({"cells_max": 7}, "cells_max is 7, below cells_min 8"),
    ],
)
def test_an_impossible_training_set_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_training_set(tmp_path, num_videos=1, **change)
