"""Evaluation on multiple-choice benchmarks: the questions of a folder, their videos' frames, the answers to them.

A video that cannot be decoded and a record that is no question become error rows with their cause; nothing stops. The
vision tower runs once for each video and context, for all its questions (docs/design.md says why not once for all).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.accuracies import choice_summary
from pipelines.attention import load_to_answer
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.records import TEST, ChoiceQuestion, from_lines, survey, to_lines
from pipelines.benchmarks.scoring import parse_answer, parse_published
from pipelines.datasets import Media
from pipelines.decode_progress import progress_path, progress_writer
from pipelines.engine import Artifact, Resources, Stage, StageConfig
from pipelines.evaluate import EvaluatePlacement
from pipelines.preprocess import PreprocessPlacement, preprocess_media
from pipelines.pretrained import normalisation_of
from pipelines.question_lines import append_lines, whole_lines
from pipelines.video.budget import FrameBudget, normalise
from pipelines.video.decode import DECODERS
from pipelines.video.frames import open_frames

# The stages are declared, and their study planned, without torch and transformers, which take seconds to import: what
# answers brings them.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QuestionsIdentity:
    """`digest`: of the folder's content, as it was planned."""

    benchmark: ChoiceBenchmark
    digest: str


@dataclass(frozen=True)
class ChoiceFramesIdentity:
    budget: FrameBudget
    decoders: str = DECODERS


@dataclass(frozen=True)
class EvaluateChoiceIdentity:
    """`scale`: positions per cell; None where the variant has none. It is read from the `scale` input if given."""

    benchmark: ChoiceBenchmark
    scale: float | None


def questions_stage(benchmark: ChoiceBenchmark, content: str) -> Stage:
    """`content`: the digest of `survey` at planning; the folder itself is placement."""
    return Stage(
        name="questions",
        code_version=2,
        run=write_questions,
        config=StageConfig(QuestionsIdentity(benchmark.identity, content), str(Path(benchmark.root).resolve())),
        label=f"questions of {benchmark.name}",
    )


def choice_frames_stage(
    benchmark: ChoiceBenchmark, questions: Stage, budget: FrameBudget, context: int, placement: PreprocessPlacement
) -> Stage:
    """Decode each video of the questions within the budget; `placement` without roots."""
    roots = {"benchmark": str(Path(benchmark.root).resolve())}
    return Stage(
        name="choice_frames",
        code_version=1,
        run=decode_videos,
        config=StageConfig(ChoiceFramesIdentity(budget), replace(placement, roots=roots)),
        inputs={"questions": questions},
        # Ray Data's actors hold the CPUs; the task that drives them must not.
        resources=Resources(num_cpus=0),
        label=f"decode videos of {benchmark.name} at {context} tokens",
    )


def evaluate_choice_stage(
    benchmark: ChoiceBenchmark,
    scale: float | None,
    inputs: Mapping[str, Stage],
    *,
    placement: EvaluatePlacement,
    chosen_scale: Stage | None = None,
    group: str,
) -> Stage:
    """`inputs` as `choice_inputs` gives them; `chosen_scale`: the scale search whose choice replaces `scale`."""
    at = "searched scale" if chosen_scale is not None else "no scale" if scale is None else f"scale {scale:g}"
    return Stage(
        name="evaluate_choice",
        code_version=3,
        run=run,
        config=StageConfig(EvaluateChoiceIdentity(benchmark.identity, scale), placement),
        inputs=dict(inputs) if chosen_scale is None else {**inputs, "scale": chosen_scale},
        label=f"evaluate {group} on {benchmark.name}, {at}",
        resumable=True,
        process_group=group,
        work_units=sum(benchmark.contexts_tokens),
    )


def choice_inputs(checkpoint: Stage, questions: Stage, frames: Mapping[int, Stage]) -> dict[str, Stage]:
    """What answering rests on; `frames` by context."""
    return {
        "checkpoint": checkpoint,
        "questions": questions,
        **{f"frames_{context}": stage for context, stage in frames.items()},
    }


def write_questions(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Write `questions.jsonl`: every question as it is asked. Raises ValueError if the folder has changed meanwhile."""
    identity: QuestionsIdentity = config.identity
    found = survey(replace(identity.benchmark, root=config.placement))
    if found.digest != identity.digest:
        raise ValueError(f"{config.placement} has changed since the study was planned; start the command again")
    lines = "".join(json.dumps(line) + "\n" for line in to_lines(found.questions))
    (out_dir / "questions.jsonl").write_text(lines, encoding="utf-8")
    return {
        "questions": len(found.questions),
        "unusable": sum(question.error is not None for question in found.questions),
        "filtered_out": found.dropped,
        "videos": len({question.video for question in found.questions}),
    }


def read_questions(questions: Artifact) -> tuple[ChoiceQuestion, ...]:
    return from_lines((questions.path / "questions.jsonl").read_text(encoding="utf-8"))


def decode_videos(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """The frames of every video, by its path; what gives none is in `quarantine.jsonl`, in any number."""
    placement: PreprocessPlacement = config.placement
    root = Path(placement.roots["benchmark"])
    videos = {q.video: Media("video", root / q.video) for q in read_questions(inputs["questions"]) if q.error is None}
    done = preprocess_media(
        videos,
        config.identity.budget,
        out_dir,
        cache_dir=Path(placement.cache_dir),
        num_workers=placement.num_workers,
        timeout_s=placement.timeout_s,
        on_progress=progress_writer(progress_path(config)),
    )
    return {**asdict(done), "quarantined": len(done.quarantined)}


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Answer every test question and write `questions.jsonl`; the result has accuracies by context, kind and group."""
    identity: EvaluateChoiceIdentity = config.identity
    scale = inputs["scale"].result["chosen"] if "scale" in inputs else identity.scale
    chunk_tokens = config.placement.chunk_tokens
    evaluator = ChoiceEvaluator(inputs, identity.benchmark, split=TEST, chunk_tokens=chunk_tokens)
    path = out_dir / "questions.jsonl"
    lines = whole_lines(path)
    answered = frozenset(line["id"] for line in lines)
    for context in identity.benchmark.contexts_tokens:
        lines += append_lines(path, evaluator.answers(context, scale, skip=answered))
    contexts = {
        str(context): choice_summary([line for line in lines if line["context"] == context], identity.benchmark)
        for context in identity.benchmark.contexts_tokens
    }
    return {"scale": scale, "questions": len(lines), "contexts": contexts}


class ChoiceEvaluator:
    """A loaded checkpoint with a benchmark's questions and frames; answers them at any scale."""

    def __init__(
        self, inputs: Mapping[str, Artifact], benchmark: ChoiceBenchmark, *, split: str, chunk_tokens: int
    ) -> None:
        from transformers import AutoTokenizer

        self.benchmark = benchmark
        self._chunk_tokens = chunk_tokens
        checkpoint = inputs["checkpoint"].path / "checkpoint"
        self._model = load_to_answer(checkpoint)
        self._normalisation = normalisation_of(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._inputs = inputs
        asked = [question for question in read_questions(inputs["questions"]) if question.split == split]
        if not asked:
            raise ValueError(f"benchmarks.{benchmark.name}.splits leave no {split} question")
        order = {video: number for number, video in enumerate(dict.fromkeys(question.video for question in asked))}
        self._asked = sorted(asked, key=lambda question: order[question.video])

    def answers(
        self, context: int, scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]:
        """One record per question at this context whose id is not in `skip`, video by video."""
        from pipelines.generate import greedy_answers
        from pipelines.prefill import Shown, layout_of

        frames = open_frames(self._inputs[f"frames_{context}"].path)
        bad = _reasons(self._inputs[f"frames_{context}"].path / "quarantine.jsonl")
        for video, group in groupby(self._asked, key=lambda question: question.video):
            waiting = [question for question in group if self._line_id(question, context) not in skip]
            usable = []
            for question in waiting:
                error = question.error or bad.get(video)
                if error is None:
                    usable.append(question)
                else:
                    yield self._record(question, context, scale, error=error)
            if not usable:
                continue
            entry = frames.about(video)
            start = time.perf_counter()
            visual = self._encode(frames.rows(video), entry.grid)
            budget = {
                "frames": entry.num_frames,
                "fps": entry.sample_fps,
                "grid": list(entry.grid),
                "visual_tokens": len(visual),
                "decoder": entry.decoder,
                "readable_share": entry.readable_share,
            }
            predictions = greedy_answers(
                self._model,
                layout_of(self._model, self._tokenizer),
                visual,
                [question.prompt for question in usable],
                video=Shown(entry.grid, self._model.config.vision_config.temporal_patch_size / entry.sample_fps),
                scale=scale,
                max_new_tokens=self.benchmark.max_new_tokens,
                chunk_tokens=self._chunk_tokens,
            )
            for question, prediction in zip(usable, predictions, strict=True):
                seconds = time.perf_counter() - start
                yield self._record(question, context, scale, prediction=prediction, budget=budget, seconds=seconds)
                start = time.perf_counter()

    def _encode(self, rows: np.ndarray, grid: tuple[int, int, int]) -> Tensor:
        """The video's visual tokens (V, D * L) from its patch rows."""
        import torch

        from pipelines.features import visual_tokens

        pixels = torch.from_numpy(normalise(np.asarray(rows), *self._normalisation))
        pixels = pixels.to(self._model.device, self._model.dtype)
        where = torch.tensor([grid], device=self._model.device)
        with torch.no_grad():
            return visual_tokens(self._model, pixels, where)

    def _line_id(self, question: ChoiceQuestion, context: int) -> str:
        return f"{question.id}/{context}"

    def _record(
        self,
        question: ChoiceQuestion,
        context: int,
        scale: float | None,
        *,
        error: str | None = None,
        prediction: str | None = None,
        budget: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        parsed = published = None
        if prediction is not None:
            rule = self.benchmark.published.rule
            parsed = parse_answer(prediction, question.options)
            published = parse_published(prediction, question.options, rule, key=question.id)
        counted = parsed if self.benchmark.scoring == "ours" else published
        return {
            "id": self._line_id(question, context),
            "benchmark": self.benchmark.name,
            "video": question.video,
            "kind": question.kind,
            "groups": question.groups,
            "context": context,
            "depth": None,
            "prompt": question.prompt,
            "prediction": prediction,
            "parsed": parsed,
            "published_parsed": published,
            "answer": question.answer,
            "correct": error is None and counted == question.answer,
            "published_correct": error is None and published == question.answer,
            "unparsed": error is None and parsed is None,
            "scale": scale,
            "error": error,
            "budget": budget,
            "duration_s": round(seconds, 6),
        }


def _reasons(path: Path) -> dict[str, str]:
    return {line["id"]: line["reason"] for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
