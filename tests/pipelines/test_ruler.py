"""V-RULER's four tasks, from records as released."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hope_core import get_variant
from pipelines.asked import read_folder
from pipelines.benchmarks.folder import FolderRecord
from pipelines.benchmarks.ruler import NOISE, compose, read_records
from pipelines.benchmarks.scoring import parse_answer
from pipelines.benchmarks.videos import NeedleVideo
from pipelines.engine import StageConfig
from pipelines.evaluate import EvaluateIdentity, EvaluatePlacement, run
from tests.pipelines import folders

FILMS = {"film": 200}


def record(*pictures: str) -> FolderRecord:
    return FolderRecord("00", "?", "A", pictures)


def placed(video: NeedleVideo) -> list[tuple[int, str]]:
    """Pictures by the film cells before them."""
    return [(cell - before, media) for before, (cell, media) in enumerate(video.insertions)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_folder(tmp_path_factory.mktemp("ruler") / "data", num_films=1)


@pytest.mark.parametrize("task", ["counting", "ordering"])
def test_counted_and_ordered_pictures_are_spread_evenly_from_the_first_frame_to_the_last(
    tmp_path: Path, task: Any
) -> None:
    benchmark = folders.ruler(tmp_path, task)
    (video,) = compose(benchmark, [record("a", "b", "c")], films=FILMS, context=101, num_noises=0)
    assert placed(video) == [(1, "a"), (51, "b"), (101, "c")]  # behind frames 0, 50 and 100
    assert video.depth is None
    (none,) = compose(benchmark, [record()], films=FILMS, context=101, num_noises=0)
    assert none.insertions == ()


def test_many_keys_lie_in_order_within_the_window_of_their_depth(tmp_path: Path) -> None:
    benchmark = folders.ruler(tmp_path, "multi_key_multi_value")
    videos = compose(benchmark, [record("a", "b", "c")] * 5, films=FILMS, context=100, num_noises=0)
    assert {video.depth for video in videos} == {0.0, 0.4, 0.8}
    for video in videos:
        places = [place for place, _ in placed(video)]
        assert [media for _, media in placed(video)] == ["a", "b", "c"]
        assert places == sorted(places)
        assert 100 * video.depth <= places[0] <= places[-1] < 100 * video.depth + 20
    assert videos == compose(benchmark, [record("a", "b", "c")] * 5, films=FILMS, context=100, num_noises=0)


def test_many_keys_at_depth_one_are_refused(tmp_path: Path) -> None:
    benchmark = folders.ruler(tmp_path, "multi_key_multi_value", depths=(1.0,))
    with pytest.raises(ValueError, match=r"depths has 1.0, which leaves no room"):
        compose(benchmark, [record("a")], films=FILMS, context=100, num_noises=0)


def test_the_stacks_noise_stands_before_the_video_and_with_depth_moves_behind_it(root: Path) -> None:
    benchmark = folders.ruler(root, "lengthy_multimodal_stack")
    records = read_records(benchmark)
    films = {item.video: 4 for item in records if item.video}
    videos = compose(benchmark, records, films=films, context=50, num_noises=10)
    assert len(videos) == 6
    for video in videos:
        (question,) = video.questions
        after = round(10 * video.depth)
        assert video.before.count(NOISE) == 10 - after
        assert question.prompt.count(NOISE) == after
        assert "Options:\n(A) All are red\n(B) All are black" in question.prompt


def test_a_list_written_as_text_is_read_as_the_list_it_is(root: Path) -> None:
    (item,) = read_records(folders.ruler(root, "multi_key_multi_value"))
    assert item.pictures == tuple(f"folder/needles/{name}.png" for name in ("red", "blue", "cyan"))


@pytest.mark.parametrize("paths", ["\"__import__('os').getcwd()\"", "3", "[3]"])
def test_what_is_no_list_of_pictures_is_refused(tmp_path: Path, paths: str) -> None:
    (tmp_path / "counting.json").write_text(f'[{{"path": {paths}, "prompt": "?", "answer": "A"}}]')
    with pytest.raises(ValueError, match="it must be a list of pictures"):
        read_records(folders.ruler(tmp_path, "counting"))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answer": "(C) All are white"}, "'answer' is .* it must name one of the candidates"),
        ({"candidates": []}, "'candidates' is .* it must be a list of options"),
        ({"candidates": [1, 2]}, "'candidates' is .* it must be a list of options"),
    ],
)
def test_a_stacks_record_without_options_or_an_answer_among_them_is_refused(
    root: Path, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    name = "lengthy_multimodal_stack.json"
    (record, _) = json.loads((root / name).read_text())
    (tmp_path / name).write_text(json.dumps([record | changed]))
    with pytest.raises(ValueError, match=reason):
        read_records(folders.ruler(tmp_path, "lengthy_multimodal_stack"))


def test_a_stacks_video_may_lie_in_a_sub_folder(tmp_path: Path) -> None:
    root = folders.write_folder(tmp_path / "data", num_films=1)
    (root / "videos" / "more").mkdir()
    (root / "videos" / "clip1.mp4").rename(root / "videos" / "more" / "clip1.mp4")
    records = root / "lengthy_multimodal_stack.json"
    records.write_text(records.read_text().replace('"video_path": "clip1.mp4"', '"video_path": "more/clip1.mp4"'))
    benchmark = folders.ruler(root, "lengthy_multimodal_stack", num_validation_films=0, depths=(0.0,))
    asked = read_folder(benchmark)
    inputs = folders.evaluation_inputs(tmp_path / "made", benchmark, asked, get_variant("m_rope"))
    run(StageConfig(EvaluateIdentity(asked, (8,), None), EvaluatePlacement(chunk_tokens=64)), inputs, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert {line["video"]: line["error"] for line in lines} == {
        "folder/videos/clip0.mp4": None,
        "folder/videos/more/clip1.mp4": None,
    }


@pytest.mark.parametrize("task", ["counting", "ordering", "multi_key_multi_value", "lengthy_multimodal_stack"])
def test_every_task_is_answered_from_its_folder(root: Path, tmp_path: Path, task: Any) -> None:
    cells = 4 if task == "lengthy_multimodal_stack" else 24  # what noise does not fill
    budget = replace(folders.BUDGET, max_frames=2 * cells)
    benchmark = folders.ruler(root, task, num_validation_films=0, budget=budget)
    asked = read_folder(benchmark)
    inputs = folders.evaluation_inputs(tmp_path / "made", benchmark, asked, get_variant("m_rope"))
    placement = EvaluatePlacement(chunk_tokens=64)
    result = run(StageConfig(EvaluateIdentity(asked, (8, 22), None), placement), inputs, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    num_depths = 1 if task in ("counting", "ordering") else 3
    assert len(lines) == 2 * num_depths * len(asked.records) == result["questions"]
    assert all(line["error"] is None and line["kind"] == task for line in lines)
    assert any(NOISE in line["prompt"] for line in lines) == (task == "lengthy_multimodal_stack")
    if task == "lengthy_multimodal_stack":
        named = [parse_answer(line["prediction"], asked.records[0].options) for line in lines]
        assert [line["unparsed"] for line in lines] == [letter is None for letter in named]
        assert [line["correct"] for line in lines] == [
            letter == line["answer"][1] for letter, line in zip(named, lines, strict=True)
        ]
    assert all(
        0 < context["prefill"]["cells"] <= context["prefill"]["naive_cells"] for context in result["contexts"].values()
    )
