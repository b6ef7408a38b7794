import json
from pathlib import Path

import pytest
import torch

from hope_core import compute_positions
from hope_core.modeling import load, variant_of, vision_tokens
from pipelines.engine import Artifact, StageConfig
from pipelines.evaluate import EvaluateIdentity, EvaluatePlacement, Evaluator, run
from pipelines.question_lines import whole_lines
from tests.pipelines.world import benchmark

CONTEXTS = (16, 40)


def identity(scale: float | None = 0.75) -> StageConfig:
    return StageConfig(EvaluateIdentity(benchmark(), CONTEXTS, scale), EvaluatePlacement(chunk_tokens=2048))


def inputs(trial: dict[str, Artifact]) -> dict[str, Artifact]:
    return {"checkpoint": trial["finetune"], "features": trial["features"], "dataset": trial["dataset"]}


def without_times(path: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (path / "questions.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "duration_s"} for line in lines]


def test_an_evaluation_cut_anywhere_goes_on_and_ends_with_the_same_questions(
    trial: dict[str, Artifact], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    result = run(identity(), inputs(trial), whole)
    written = (whole / "questions.jsonl").read_bytes()
    for share in (0.0, 0.3, 0.77):
        (cut / "questions.jsonl").write_bytes(written[: int(share * len(written))])
        again = run(identity(), inputs(trial), cut)
        assert without_times(cut) == without_times(whole)
        assert again["accuracy"] == result["accuracy"]


def test_a_restart_answers_only_what_is_missing(trial: dict[str, Artifact], tmp_path: Path) -> None:
    run(identity(), inputs(trial), tmp_path)
    before = (tmp_path / "questions.jsonl").read_bytes()
    run(identity(), inputs(trial), tmp_path)
    assert (tmp_path / "questions.jsonl").read_bytes() == before  # timings too: nothing was answered again


def test_every_question_has_a_line_with_what_its_score_rests_on(trial: dict[str, Artifact], tmp_path: Path) -> None:
    result = run(identity(), inputs(trial), tmp_path)
    lines = without_times(tmp_path)
    assert len(lines) == len({line["id"] for line in lines}) == result["questions"] == 2 * 3 * 2 * 2
    assert {line["context"] for line in lines} == set(CONTEXTS)
    assert all(line["scale"] == 0.75 and line["correct"] == (line["prediction"] == line["answer"]) for line in lines)


def test_another_scale_moves_the_positions_of_a_loaded_checkpoint(trial: dict[str, Artifact]) -> None:
    model = load(trial["finetune"].path / "checkpoint").eval()
    tokens = vision_tokens(model.config)
    ids = torch.tensor([[tokens.vision_start, *[tokens.video] * 16, tokens.vision_end]])
    rows = [
        compute_positions(
            variant_of(model), ids, tokens=tokens, video_grid_thw=torch.tensor([[4, 4, 4]]), scales=scale
        ).position_ids
        for scale in (0.5, 1.0)
    ]
    assert not torch.equal(*rows)


def test_no_test_question_is_asked_of_a_validation_film(trial: dict[str, Artifact]) -> None:
    films = {
        split: {v.film for v in Evaluator(inputs(trial), benchmark(), split=split, chunk_tokens=2048).videos(16)}
        for split in ("validation", "test")
    }
    assert films["validation"]
    assert films["test"]
    assert not films["validation"] & films["test"]


@pytest.mark.parametrize("content", [b"", b'{"id": "a"}\n', b'{"id": "a"}\n{"id": "b"', b'{"id": "a'])
def test_a_torn_last_line_is_cut_off_and_whole_ones_are_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    assert whole_lines(path) == ([{"id": "a"}] if b"\n" in content else [])
    assert path.read_bytes() == (b'{"id": "a"}\n' if b"\n" in content else b"")
