"""V-NIAH and V-NIAH-D in LongVA's records and the published grid."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hope_core import compute_positions, get_variant
from hope_core.modeling import load, variant_of, vision_tokens
from pipelines.asked import FolderQuestions, read_folder
from pipelines.benchmarks.folder import FolderRecord, media_digest
from pipelines.benchmarks.niah import compose, read_records
from pipelines.engine import Artifact, StageConfig
from pipelines.evaluate import EvaluateIdentity, EvaluatePlacement, Evaluator, run
from pipelines.features import open_features
from pipelines.prefill import cell_numbers
from tests.pipelines import folders

FILM = {"folder/haystack/movie0.mp4": 3000}
RECORDS = tuple(FolderRecord(f"{n:02d}", "\nWhich?", "A", (f"needle{n}", f"twin{n}")) for n in range(5))
PUBLISHED = tuple(range(100, 3000, 200))


def shown(video: Any) -> list[tuple[int, str]]:
    """Pictures by the film cells before them."""
    return [(cell - before, media) for before, (cell, media) in enumerate(video.insertions)]


def test_the_published_grid_is_every_needle_at_six_depths_of_fifteen_lengths(tmp_path: Path) -> None:
    benchmark = folders.niah(tmp_path, contexts=PUBLISHED)
    videos = [v for n in PUBLISHED for v in compose(benchmark, RECORDS, films=FILM, context=n)]
    assert len(videos) == len({video.questions[0].id for video in videos}) == 450
    for video in videos:
        ((place, picture),) = shown(video)
        assert video.start == 0
        assert place == round(video.depth * video.context)
        assert picture == f"needle{int(video.id[-2:])}"


@pytest.mark.parametrize(
    ("length", "depth", "places"),
    [
        (300, 0.2, {60, 260}),
        (300, 0.4, {120}),
        (300, 1.0, {100, 300}),
        (700, 0.2, {140, 340}),
        (700, 0.8, {360, 560}),
        (1100, 0.4, {440, 240, 640}),
    ],
)
def test_the_distractor_lies_one_period_away_on_the_side_where_it_fits(
    tmp_path: Path, length: int, depth: float, places: set[int]
) -> None:
    benchmark = folders.niah(tmp_path, depths=(depth,), distractor_period=200)
    found: set[int] = set()
    for seed in range(20):
        settings = folders.niah(tmp_path, depths=(depth,), distractor_period=200, seed=seed)
        for video in compose(settings, RECORDS, films=FILM, context=length):
            found |= {place for place, _ in shown(video)}
            assert {media for _, media in shown(video)} <= {f"needle{video.id[-1]}", f"twin{video.id[-1]}"}
            assert len(video.insertions) == min(2, len(places))
    assert found == places
    once, again = (compose(benchmark, RECORDS, films=FILM, context=length) for _ in range(2))
    assert once == again


def test_another_period_is_kept(tmp_path: Path) -> None:
    benchmark = folders.niah(tmp_path, depths=(0.5,), distractor_period=7)
    for video in compose(benchmark, RECORDS, films=FILM, context=40):
        assert sorted(place for place, _ in shown(video)) in ([13, 20], [20, 27])


def test_a_film_shorter_than_a_context_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3000 cells, a context 3100; lower contexts"):
        compose(folders.niah(tmp_path), RECORDS, films=FILM, context=3100)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "no JSON array of records"),
        ('[{"path": "a.png", "prompt": "?"}]', "'answer' must be a text; the record has path, prompt"),
        ('[{"path": "a.png", "prompt": "?", "answer": "A"}]', "no interrupt_path"),
        ("[", "cannot read records"),
        ("[" * 100_000, r"cannot read records from .*dataset\.json: maximum recursion depth"),
    ],
)
def test_records_of_another_form_are_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=reason) as refusal:
        read_records(folders.niah(tmp_path, distractor_period=2))
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_folder(tmp_path_factory.mktemp("niah") / "data")


@pytest.fixture(scope="module")
def asked(root: Path) -> FolderQuestions:
    return read_folder(folders.niah(root, distractor_period=3))


@pytest.fixture(scope="module")
def inputs(root: Path, asked: FolderQuestions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    out = tmp_path_factory.mktemp("made")
    return folders.evaluation_inputs(out, folders.niah(root), asked, get_variant("hope").at_scale(0.75))


def config(asked: FolderQuestions, contexts: tuple[int, ...] = (6, 12, 18)) -> StageConfig:
    return StageConfig(EvaluateIdentity(asked, contexts, 0.75), EvaluatePlacement(chunk_tokens=32))


def lines(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "duration_s"}
        for line in (path / "questions.jsonl").read_text().splitlines()
    ]


@torch.no_grad()
def test_shared_answers_are_those_of_one_full_forward_each(
    inputs: dict[str, Artifact], asked: FolderQuestions, tmp_path: Path
) -> None:
    result = run(config(asked), inputs, tmp_path)
    written = {line["id"]: line for line in lines(tmp_path)}
    assert len(written) == result["questions"] == 3 * 6 * 5
    checkpoint = inputs["checkpoint"].path / "checkpoint"
    model, tokenizer = load(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    features = open_features(inputs["features"].path)
    evaluator = Evaluator(inputs, asked, split="test", chunk_tokens=2048)
    for video in [video for context in (6, 18) for video in evaluator.videos(context)][::4]:
        (question,) = video.questions
        wanted = tokenizer(question.answer).input_ids
        assert len(wanted) > 1
        visual = features.table[torch.from_numpy(cell_numbers(video, features))].flatten(0, 1)
        marks = f"<|vision_start|>{'<|video_pad|>' * len(visual)}<|vision_end|>"
        ids = torch.tensor([tokenizer(video.before + marks + question.prompt).input_ids + wanted[:-1]])
        hidden = model.get_input_embeddings()(ids)
        hidden[ids == model.config.video_token_id] = visual
        positions = compute_positions(
            variant_of(model),
            ids,
            tokens=vision_tokens(model.config),
            video_grid_thw=torch.tensor([[video.num_cells, *features.grid]]),
            scales=0.75,
        )
        states = model.model.language_model(inputs_embeds=hidden, position_ids=positions.position_ids)
        best = model.lm_head(states.last_hidden_state)[0, -len(wanted) :].argmax(-1).tolist()
        assert written[question.id]["prediction"] == tokenizer.decode(best)
        assert written[question.id]["correct"] == (best == wanted)


def test_the_result_counts_the_frames_that_were_read_and_those_of_a_naive_loop(
    inputs: dict[str, Artifact], asked: FolderQuestions, tmp_path: Path
) -> None:
    result = run(config(asked), inputs, tmp_path)
    features = open_features(inputs["features"].path)
    evaluator = Evaluator(inputs, asked, split="test", chunk_tokens=2048)
    paths = [cell_numbers(v, features).tolist() for n in (6, 12, 18) for v in evaluator.videos(n)]
    counts = [context["prefill"] for context in result["contexts"].values()]
    assert sum(count["cells"] for count in counts) == len({tuple(p[: n + 1]) for p in paths for n in range(len(p))})
    assert sum(count["naive_cells"] for count in counts) == sum(map(len, paths))


KILLED = """
import json, os, signal, sys, types
from pathlib import Path
from pipelines import evaluate, question_lines
from tests.pipelines import folders, test_niah
from pipelines.asked import read_folder
from pipelines.engine import Artifact

root, made, out = map(Path, sys.argv[1:])
inputs = {"checkpoint": Artifact("", "", made / "tuned", {}), "features": Artifact("", "", made / "features", {})}
asked = read_folder(folders.niah(root, distractor_period=3))
written = 0

def killed_at_the_37th(line):
    global written
    written += 1
    if written == 37:
        with (out / "questions.jsonl").open("a") as file:
            file.write(json.dumps(line)[:20])
        os.kill(os.getpid(), signal.SIGKILL)
    return json.dumps(line)

question_lines.json = types.SimpleNamespace(dumps=killed_at_the_37th, loads=json.loads)
evaluate.run(test_niah.config(asked), inputs, out)
"""


def test_a_grid_that_was_killed_goes_on_after_its_last_line_and_ends_with_the_same_file(
    root: Path, inputs: dict[str, Artifact], asked: FolderQuestions, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    run(config(asked), inputs, whole)
    made = inputs["features"].path.parent
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), str(made), str(cut)], env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    before = (cut / "questions.jsonl").read_bytes()
    assert before.count(b"\n") == 36
    run(config(asked), inputs, cut)
    assert (cut / "questions.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert lines(cut) == lines(whole)


def test_validation_and_test_questions_share_no_film(inputs: dict[str, Artifact], asked: FolderQuestions) -> None:
    films = {
        split: {v.film for v in Evaluator(inputs, asked, split=split, chunk_tokens=32).videos(6)}
        for split in ("validation", "test")
    }
    assert films == {"validation": {"folder/haystack/movie0.mp4"}, "test": {"folder/haystack/movie1.mp4"}}


def test_what_else_lies_in_a_folder_is_no_film_and_a_needle_may_lie_deeper(tmp_path: Path) -> None:
    root = folders.write_folder(tmp_path / "data", num_films=1)
    (root / "needles" / "warm").mkdir()
    (root / "needles" / "red.png").rename(root / "needles" / "warm" / "red.png")
    records = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps([{**records[0], "path": "warm/red.png"}, *records[1:]]))
    benchmark = folders.niah(root, num_validation_films=0, contexts=(6,), depths=(0.5,))
    clean = media_digest(root, benchmark.patterns)
    for stray in ("haystack/.DS_Store", "haystack/._movie0.mp4", "haystack/subs/movie0.srt", "needles/warm/.DS_Store"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_bytes(b"Bud1")
    assert media_digest(root, benchmark.patterns) == clean
    asked = read_folder(benchmark)
    inputs = folders.evaluation_inputs(tmp_path / "made", benchmark, asked, get_variant("m_rope"))
    run(StageConfig(EvaluateIdentity(asked, (6,), None), EvaluatePlacement(chunk_tokens=32)), inputs, tmp_path)
    assert [(line["video"], line["error"]) for line in lines(tmp_path)] == [("folder/haystack/movie0.mp4", None)] * 5


@pytest.mark.parametrize("part", ["films", "pictures"])
def test_a_folder_outside_of_the_root_is_refused_with_the_remedy(tmp_path: Path, part: str) -> None:
    with pytest.raises(
        ValueError, match=rf"published\.{part} is '/films'; give a folder in benchmark\.v_niah_published\.root"
    ):
        folders.niah(tmp_path, **{part: "/films"})


def test_a_folder_without_films_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "haystack").mkdir()
    (tmp_path / "haystack" / ".DS_Store").touch()
    with pytest.raises(ValueError, match=r"no file matches haystack/\* in .*; set the benchmark's root") as refusal:
        media_digest(tmp_path, folders.niah(tmp_path).patterns)
    assert "\n" not in str(refusal.value)


def test_a_needle_or_film_that_cannot_be_read_gives_error_rows_with_the_cause(tmp_path: Path) -> None:
    root = folders.write_folder(tmp_path / "data")
    (root / "needles" / "blue.png").write_bytes(b"")
    (root / "needles" / "cyan.png").unlink()
    (root / "haystack" / "movie1.mp4").write_bytes(b"not a film")
    benchmark = folders.niah(root, num_validation_films=0, contexts=(6,), depths=(0.5,))
    asked = read_folder(benchmark)
    inputs = folders.evaluation_inputs(tmp_path / "made", benchmark, asked, get_variant("m_rope"))
    placement = EvaluatePlacement(chunk_tokens=32)
    result = run(StageConfig(EvaluateIdentity(asked, (6,), None), placement), inputs, tmp_path)
    found = {line["id"]: line["error"] for line in lines(tmp_path)}
    assert result["questions"] == len(found) == 10
    assert result["contexts"]["6"]["errors"] == sum(error is not None for error in found.values()) == 7
    assert all("movie1.mp4" in error for name, error in found.items() if "movie1" in name)
    assert "blue.png: " in found["folder/haystack/movie0.mp4/6/00/02/retrieval"]
    assert "cyan.png: no such file" in found["folder/haystack/movie0.mp4/6/00/04/retrieval"]
