"""Multiple-choice evaluation of a trained model on a released format's miniature, with faults in its videos."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hope_core.modeling import load, set_scale, vision_tokens
from pipelines.accuracies import choice_summary
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.records import VALIDATION, survey
from pipelines.engine import Artifact, LocalRunner, Stage, StageConfig, Store
from pipelines.evaluate import EvaluatePlacement
from pipelines.evaluate_choice import (
    ChoiceEvaluator,
    EvaluateChoiceIdentity,
    choice_frames_stage,
    questions_stage,
    run,
)
from pipelines.generate import greedy_answers, question_sources
from pipelines.prefill import Shown, layout_of
from pipelines.preprocess import PreprocessPlacement
from pipelines.samples import RowLayout
from pipelines.video.budget import normalise
from pipelines.video.frames import open_frames
from tests.pipelines.benchmarks.miniatures import settings, write_faults, write_longvideobench

CONTEXTS = (16, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longvideobench")
    write_faults(folder)
    return folder


@pytest.fixture(scope="module")
def benchmark(root: Path) -> ChoiceBenchmark:
    return TypeAdapter(ChoiceBenchmark).validate_python(
        settings("longvideobench", root=str(root), drop=None, splits={"validation_share": 0.25})
    )


@pytest.fixture(scope="module")
def inputs(
    trial: dict[str, Artifact], benchmark: ChoiceBenchmark, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("choice")
    questions, frames = data_stages(benchmark, folder)
    summary = LocalRunner(Store(folder / "store")).run([questions, *frames.values()])
    assert summary.ok, [failure.traceback for _, failure in summary.failed]
    made = {f"frames_{context}": summary.artifacts[stage.fingerprint] for context, stage in frames.items()}
    return {"checkpoint": trial["finetune"], "questions": summary.artifacts[questions.fingerprint], **made}


def data_stages(benchmark: ChoiceBenchmark, folder: Path) -> tuple[Stage, dict[int, Stage]]:
    questions = questions_stage(benchmark, survey(benchmark).digest)
    placement = PreprocessPlacement(cache_dir=str(folder / "cache"), num_workers=0, timeout_s=600)
    frames = {}
    for context in CONTEXTS:
        budget = benchmark.budget.at(context, patch_size=8, merge_size=2, temporal_patch_size=2)
        frames[context] = choice_frames_stage(benchmark, questions, budget, context, placement)
    return questions, frames


def config(benchmark: ChoiceBenchmark, scale: float | None = 0.75) -> StageConfig:
    return StageConfig(EvaluateChoiceIdentity(benchmark.identity, scale), EvaluatePlacement(chunk_tokens=64))


def without_times(path: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (path / "questions.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "duration_s"} for line in lines]


def test_faulty_videos_and_records_are_error_rows_with_their_causes(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark, tmp_path: Path
) -> None:
    result = run(config(benchmark), inputs, tmp_path)
    lines = without_times(tmp_path)
    test = [question for question in survey(benchmark).questions if question.split == "test"]
    assert len(lines) == len(test) * len(CONTEXTS) == len({line["id"] for line in lines})
    causes = {line["id"]: line["error"] for line in lines if line["error"]}
    faulty = {"vid4": "UnreadableFile: no such file", "vid5": "UnreadableFile", "vid6": "UnreadableFile"}
    for question in test:
        for context in CONTEXTS:
            cause = causes.get(f"{question.id}/{context}")
            video = question.id.split("_")[0]
            if question.id == "vid7_0":
                assert cause == "NoOptions: the record has 0 options; a choice needs two"
            elif video in faulty:
                assert cause is not None
                assert cause.startswith(faulty[video])
            else:
                assert cause is None
    assert {"vid4", "vid5", "vid6"} & {name.split("_")[0] for name in causes}
    cell = result["contexts"]["16"]
    assert cell["errors"] == len(causes) // 2 > 0
    assert cell["questions"] == len(test)
    sound = [line for line in lines if not line["error"]]
    assert all(line["prediction"] is not None and line["budget"]["visual_tokens"] <= line["context"] for line in sound)
    assert all(line["correct"] == (line["parsed"] == line["answer"]) for line in sound)
    assert not any(line["correct"] or line["unparsed"] for line in lines if line["error"])


def test_a_video_whose_name_is_too_long_for_a_file_is_one_that_is_missing(tmp_path: Path) -> None:
    write_longvideobench(tmp_path, videos=2)
    long = "data:video/mp4;base64," + "A" * 5000
    records = json.loads((tmp_path / "lvb_val.json").read_text())
    (tmp_path / "lvb_val.json").write_text(json.dumps([*records, {**records[0], "id": "long", "video_path": long}]))
    benchmark = TypeAdapter(ChoiceBenchmark).validate_python(settings("longvideobench", root=str(tmp_path)))
    questions, frames = data_stages(benchmark, tmp_path)
    summary = LocalRunner(Store(tmp_path / "store")).run([questions, *frames.values()])
    assert summary.ok, [failure.traceback for _, failure in summary.failed]
    for stage in frames.values():
        artifact = summary.artifacts[stage.fingerprint]
        (line,) = map(json.loads, (artifact.path / "quarantine.jsonl").read_text().splitlines())
        assert line["id"] == f"videos/{long}"
        assert line["reason"].startswith("UnreadableFile: File name too long: ")
        assert artifact.result["num_media"] == 3


def test_videos_are_encoded_and_questions_answered_on_an_accelerator_as_on_the_cpu(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    run(config(benchmark), inputs, here)
    request.getfixturevalue("accelerator")
    run(config(benchmark), inputs, there)
    assert without_times(there) == without_times(here)


def test_a_cell_cut_anywhere_goes_on_and_ends_with_the_same_file(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    result = run(config(benchmark), inputs, whole)
    written = (whole / "questions.jsonl").read_bytes()
    for share in (0.2, 0.77):
        (cut / "questions.jsonl").write_bytes(written[: int(share * len(written))])
        again = run(config(benchmark), inputs, cut)
        assert without_times(cut) == without_times(whole)
        assert again["contexts"]["16"]["accuracy"] == result["contexts"]["16"]["accuracy"]
    before = (cut / "questions.jsonl").read_bytes()
    run(config(benchmark), inputs, cut)
    assert (cut / "questions.jsonl").read_bytes() == before  # timings too: nothing was answered again


# The kernel kills the process in the middle of a line: whoever watched from outside could come too late.
KILLED = """
import json, resource, signal, sys
from pathlib import Path
from pydantic import TypeAdapter
from pipelines.accuracies import choice_summary
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.engine import Artifact, StageConfig
from pipelines.evaluate import EvaluatePlacement
from pipelines.evaluate_choice import EvaluateChoiceIdentity, run
given = json.loads(sys.argv[1])
inputs = {name: Artifact(name, "", Path(path), {}) for name, path in given["inputs"].items()}
benchmark = TypeAdapter(ChoiceBenchmark).validate_python(given["benchmark"])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (given["limit_bytes"], given["limit_bytes"]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
run(StageConfig(EvaluateChoiceIdentity(benchmark.identity, 0.75), EvaluatePlacement(64)), inputs, Path(given["out"]))
"""


def test_a_cell_killed_in_the_middle_of_a_line_ends_with_the_file_of_an_uninterrupted_one(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark, root: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(config(benchmark), inputs, whole)
    lines = (whole / "questions.jsonl").read_bytes().splitlines(keepends=True)
    given = {
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "benchmark": settings("longvideobench", root=str(root), drop=None, splits={"validation_share": 0.25}),
        "out": str(killed),
        "limit_bytes": sum(map(len, lines[:3])) + len(lines[3]) // 2,
    }
    process = subprocess.run([sys.executable, "-c", KILLED, json.dumps(given)], check=False)
    assert process.returncode == -signal.SIGXFSZ
    left = (killed / "questions.jsonl").read_bytes()
    assert left.count(b"\n") == 3
    assert not left.endswith(b"\n")
    run(config(benchmark), inputs, killed)
    assert without_times(killed) == without_times(whole)


def test_validation_questions_are_of_other_videos_than_test_questions(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark
) -> None:
    searched = list(ChoiceEvaluator(inputs, benchmark, split=VALIDATION, chunk_tokens=64).answers(16, 0.5))
    tested = list(ChoiceEvaluator(inputs, benchmark, split="test", chunk_tokens=64).answers(16, 0.5))
    assert searched
    assert not {line["video"] for line in searched} & {line["video"] for line in tested}


def test_answers_on_shared_prefixes_are_those_of_generate_on_each_question_alone(
    inputs: dict[str, Artifact], benchmark: ChoiceBenchmark
) -> None:
    checkpoint = inputs["checkpoint"].path / "checkpoint"
    model, tokenizer = load(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    model.set_attn_implementation("eager")
    frames = open_frames(inputs["frames_32"].path)
    video = next(iter(frames))
    grid = frames.grid(video)
    pixels = torch.from_numpy(normalise(frames.rows(video).copy()))
    with torch.no_grad():
        visual = model.model.get_video_features(pixels, torch.tensor([grid])).pooler_output[0]
    prompts = [tokenizer.convert_ids_to_tokens(place) for place in (7, 9, 12)]
    prompts.append("\n".join(prompts))
    found = list(
        greedy_answers(
            model,
            layout_of(model, tokenizer),
            visual,
            prompts,
            video=Shown(grid, 1.0),
            scale=0.75,
            max_new_tokens=5,
            chunk_tokens=7,
        )
    )
    set_scale(model, 0.75)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = question_sources(layout_of(model, tokenizer), prompt, marked_pads(tokenizer, len(visual)))[None]
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=2 * (ids == vision_tokens(model.config).video).long(),
            pixel_values_videos=pixels,
            video_grid_thw=torch.tensor([grid]),
            max_new_tokens=5,
            do_sample=False,
        )
        assert answer == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


VIDEO = ["<|vision_start|>", *["<|video_pad|>"] * 3, "<|vision_end|>", "which", "?"]


def marked_pads(tokenizer: PreTrainedTokenizerBase, number: int) -> Tensor:
    """A video's tokens as the model is given them: placeholders between the marks."""
    words = ["<|vision_start|>", *["<|video_pad|>"] * number, "<|vision_end|>"]
    return torch.tensor(tokenizer.convert_tokens_to_ids(words))


def words_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    layout = RowLayout(tokenizer, merge_size=2, timestamps=False)
    row = question_sources(layout, prompt, marked_pads(tokenizer, 3))
    return tokenizer.convert_ids_to_tokens(row.tolist())


def test_a_tokenizer_with_marks_of_turns_gets_qwen2_vls_row() -> None:
    tokenizer = small_tokenizer("<|im_start|>", "<|im_end|>")
    system = ["<|im_start|>", "system", *["You", "are", "a", "helpful", "assistant."], "<|im_end|>"]
    words = words_of(tokenizer, "which ?")
    assert words == [*system, "<|im_start|>", "user", *VIDEO, "<|im_end|>", "<|im_start|>", "assistant"]
    with pytest.raises(ValueError, match="2 places for a video"):
        words_of(tokenizer, "which <|video_pad|> ?")


def test_another_chat_template_is_followed_and_without_one_the_prompt_stands_alone() -> None:
    tokenizer = small_tokenizer("<turn>")
    assert words_of(tokenizer, "which ?") == VIDEO
    tokenizer.chat_template = (
        "{% for m in messages %}<turn>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'video' %}"
        "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    )
    words = words_of(tokenizer, "which ?")
    assert words == ["<turn>", "user", *VIDEO, "<turn>", "assistant"]


def small_tokenizer(*turns: str) -> PreTrainedTokenizerFast:
    """Words as tokens, with the marks of videos and the given ones of turns."""
    marks = [*turns, "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"]
    words = [
        "<unk>",
        *marks,
        "system",
        "user",
        "assistant",
        "which",
        "?",
        *["You", "are", "a", "helpful", "assistant."],
    ]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", additional_special_tokens=marks)


def test_means_by_our_rule_and_the_published_one_stand_side_by_side(benchmark: ChoiceBenchmark) -> None:
    def line(kind: str, correct: bool, published: bool) -> dict[str, Any]:
        rest = {"error": None, "unparsed": not correct, "groups": {"duration_group": "15"}, "duration_s": 0.0}
        return {"kind": kind, "correct": correct, "published_correct": published, **rest}

    lines = [line("a", True, True), line("a", True, True), line("a", False, True), line("b", False, False)]
    ours = choice_summary(lines, benchmark)
    assert ours["accuracy"] == ours["means"]["micro"] == 0.5
    assert ours["means"]["macro"] == pytest.approx(1 / 3)
    assert ours["means"]["published"] == 0.75
    assert ours["unparsed"] == 2
    assert ours["groups"] == {"duration_group": {"15": 0.5}}
    given = settings("mlvu", scoring="published")
    by_task = choice_summary(lines, TypeAdapter(ChoiceBenchmark).validate_python(given))
    assert by_task["accuracy"] == pytest.approx(1 / 3)  # MLVU's published mean is over tasks


def test_where_a_folder_lies_is_no_part_of_a_result_and_its_prompt_and_budget_are(
    benchmark: ChoiceBenchmark, tmp_path: Path
) -> None:
    def fingerprints(**changes: Any) -> list[str]:
        given = settings("longvideobench", root=benchmark.root, drop=None) | changes
        questions, frames = data_stages(TypeAdapter(ChoiceBenchmark).validate_python(given), tmp_path)
        return [questions.fingerprint, frames[16].fingerprint]

    here = fingerprints()
    link = tmp_path / "elsewhere"
    link.symlink_to(benchmark.root)
    assert fingerprints(root=str(link)) == here
    assert fingerprints(prompt="{question}\n{options}")[0] != here[0]
    tiny = settings("longvideobench")["budget"]
    for changed in ({**tiny, "fps": 1.0}, {**tiny, "sampler": "stride"}):
        assert fingerprints(budget=changed)[1] != here[1]


def test_a_folder_that_changed_since_planning_is_refused(
    root: Path, benchmark: ChoiceBenchmark, tmp_path: Path
) -> None:
    stale = questions_stage(benchmark, "0" * 64)
    summary = LocalRunner(Store(tmp_path / "store")).run([stale])
    ((_, failure),) = summary.failed
    assert "has changed since the study was planned" in failure.error
