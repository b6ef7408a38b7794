import json
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.video.synthetic import draw_markers, draw_values, encode_mp4, write_needle_benchmark, write_training_set


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    # Many clips between the two: an encoder that reads unwritten memory shows itself only then.
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_training_set(tmp_path / name, num_videos=40, seed=seed)
        write_needle_benchmark(tmp_path / name, num_films=6, film_frames=120, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["train.json"] != files(tmp_path / "c")["train.json"]


def test_the_questions_of_a_clip_ask_single_needles_by_marker_and_twins_by_order(tmp_path: Path) -> None:
    write_training_set(tmp_path, num_videos=4, num_needles=8, num_twins=3)
    for record in json.loads((tmp_path / "train.json").read_text()):
        asked = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"][::2]]
        words = sorted(question.split()[0] for question in asked)
        assert words == ["find"] * 2 + ["first"] * 3 + ["last"] * 3
        assert len({question.split()[1] for question in asked}) == 5
        assert record["conversations"][0]["value"].startswith("<image>\n")
        assert (tmp_path / record["video"]).is_file()


def test_twins_never_share_their_value() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        markers = draw_markers(rng, 8, 3)
        values = draw_values(rng, markers)
        assert len(set(zip(markers, values, strict=True))) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_needles": 9}, "num_needles is 9"),
        ({"num_needles": 2, "num_twins": 2}, "num_twins is 2; 2 needles allow 0 to 1"),
        ({"cells_max": 4}, "cells_max is 4, below cells_min 8"),
    ],
)
def test_impossible_clips_are_refused(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_training_set(tmp_path, num_videos=1, **settings)
    assert not any(tmp_path.iterdir())


def test_a_clip_is_h264_with_its_frames_and_rate(tmp_path: Path) -> None:
    encode_mp4(tmp_path / "clip.mp4", np.zeros((6, 32, 32, 3), np.uint8), fps=2.0)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        stream = clip.streams.video[0]
        assert (stream.codec_context.name, stream.frames, float(stream.average_rate or 0)) == ("h264", 6, 2.0)
