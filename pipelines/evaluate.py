"""The evaluate stage: one trial's checkpoint on one benchmark at one scale, over every context length.

Every question is a line of `questions.jsonl`, written as it is answered; a restarted stage goes on after the last line.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hope_core.modeling import load
from pipelines.benchmarks.needles import NeedleBenchmark, compose, split_films
from pipelines.benchmarks.videos import NeedleVideo, Question
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.features import FILM_PREFIX, open_features, read_needles
from pipelines.prefill import Reader, text_ids, video_sources

# Visual tokens of the videos that are answered together where they share nothing: bounds the memory of a batch.
TOKENS_PER_BATCH = 8192
# Tokens of a row in one forward.
CHUNK_TOKENS = 2048


@dataclass(frozen=True)
class EvaluateIdentity:
    """`scale`: positions per cell; None where the variant has none. It is read from the `scale` input if given."""

    benchmark: NeedleBenchmark
    contexts_frames: tuple[int, ...]
    scale: float | None


def evaluate_stage(
    benchmark: NeedleBenchmark,
    contexts_frames: Sequence[int],
    scale: float | None,
    *,
    checkpoint: Stage,
    features: Stage,
    dataset: Stage,
    chosen_scale: Stage | None = None,
    group: str,
) -> Stage:
    """With `chosen_scale`, the scale search whose choice replaces `scale`."""
    inputs = {"checkpoint": checkpoint, "features": features, "dataset": dataset}
    if chosen_scale is not None:
        inputs["scale"] = chosen_scale
    at = "searched scale" if chosen_scale is not None else "no scale" if scale is None else f"scale {scale:g}"
    return Stage(
        name="evaluate",
        code_version=1,
        run=run,
        config=StageConfig(EvaluateIdentity(benchmark, tuple(contexts_frames), scale)),
        inputs=inputs,
        label=f"evaluate {group} on {benchmark.name}, {at}",
        resumable=True,
        process_group=group,
        work_units=sum(contexts_frames) * len(benchmark.depths) * benchmark.videos_per_depth,
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Answer every test question and write `questions.jsonl`; the result has accuracies by context and kind."""
    identity: EvaluateIdentity = config.identity
    scale = inputs["scale"].result["chosen"] if "scale" in inputs else identity.scale
    evaluator = Evaluator(inputs, identity.benchmark, split="test")
    path = out_dir / "questions.jsonl"
    answered = keep_whole_lines(path)
    with path.open("a", encoding="utf-8") as file:
        for context_frames in identity.contexts_frames:
            for line in evaluator.answers(context_frames, scale, skip=answered):
                file.write(json.dumps(line) + "\n")
                file.flush()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        "scale": scale,
        "questions": len(lines),
        "accuracy": _mean(lines),
        "contexts": {
            str(context): _summary([line for line in lines if line["context"] == context])
            for context in identity.contexts_frames
        },
    }


def keep_whole_lines(path: Path) -> frozenset[str]:
    """Cut a line that a killed process left torn off the file, and return the ids of the questions it holds."""
    if not path.exists():
        return frozenset()
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return frozenset(json.loads(line)["id"] for line in whole.decode().splitlines())


class Evaluator:
    """A loaded checkpoint with its benchmark's videos; answers them at any scale."""

    def __init__(
        self,
        inputs: Mapping[str, Artifact],
        benchmark: NeedleBenchmark,
        *,
        split: str,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        self.benchmark = benchmark
        self.chunk_tokens = chunk_tokens
        self._model = load(inputs["checkpoint"].path / "checkpoint").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(inputs["checkpoint"].path / "checkpoint")
        self._features = open_features(inputs["features"].path)
        self._films = split_films(self._features.lengths(FILM_PREFIX), benchmark, split)
        self._needles = read_needles(inputs["dataset"].path / "needles.json")

    def videos(self, context_frames: int) -> list[NeedleVideo]:
        return compose(
            self.benchmark,
            films=self._films,
            needles=self._needles,
            context_frames=context_frames,
            frames_per_cell=self._model.config.vision_config.temporal_patch_size,
        )

    def answers(
        self, context_frames: int, scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]:
        """One record per question of this length that is not in `skip`, in a fixed order."""
        waiting = [v for v in self.videos(context_frames) if not all(q.id in skip for q in v.questions)]
        for batch in self._batches(waiting):
            start = time.perf_counter()
            predictions = self._answer(batch, scale)
            seconds = (time.perf_counter() - start) / sum(len(video.questions) for video in batch)
            for video, answered in zip(batch, predictions, strict=True):
                for question, prediction in zip(video.questions, answered, strict=True):
                    if question.id not in skip:
                        yield self._record(video, question, prediction, scale, seconds)

    def _answer(self, videos: Sequence[NeedleVideo], scale: float | None) -> list[list[str]]:
        """For each video the predicted answer of each of its questions, teacher-forced."""
        rows = torch.stack([video_sources(video, self._features, self._tokenizer) for video in videos])
        tails = [self._tails([video.questions[n] for video in videos]) for n in range(len(videos[0].questions))]
        reader = Reader(
            self._model,
            self._features,
            scale=scale,
            capacity=rows.shape[1] + max(tail.shape[1] for tail, _ in tails),
            chunk_tokens=self.chunk_tokens,
        )
        predictions: list[list[str]] = [[] for _ in videos]
        for tail, last in tails:
            best = reader.logits(torch.cat([rows, tail], dim=1), videos, last=last).argmax(-1)
            for video_predictions, ids in zip(predictions, best.tolist(), strict=True):
                video_predictions.append(" ".join(self._tokenizer.convert_ids_to_tokens(ids)))
        return predictions

    def _tails(self, questions: Sequence[Question]) -> tuple[Tensor, int]:
        """Prompts and answers but for their last token, (B, S); and how many tokens an answer has."""
        asked = [text_ids(self._tokenizer, question.prompt) for question in questions]
        wanted = [text_ids(self._tokenizer, question.answer) for question in questions]
        return torch.tensor([ask + want[:-1] for ask, want in zip(asked, wanted, strict=True)]), len(wanted[0])

    def _batches(self, videos: Sequence[NeedleVideo]) -> Iterator[list[NeedleVideo]]:
        """Videos of one number of cells, in order, as many as TOKENS_PER_BATCH allows."""
        batch: list[NeedleVideo] = []
        for video in videos:
            full = (len(batch) + 1) * video.num_cells * self._features.tokens_per_cell > TOKENS_PER_BATCH
            if batch and (full or video.num_cells != batch[0].num_cells):
                yield batch
                batch = []
            batch.append(video)
        if batch:
            yield batch

    def _record(
        self, video: NeedleVideo, question: Question, prediction: str, scale: float | None, seconds: float
    ) -> dict[str, Any]:
        return {
            "id": question.id,
            "benchmark": self.benchmark.name,
            "video": video.film,
            "kind": question.kind,
            "context": video.context_frames,
            "depth": video.depth,
            "prompt": question.prompt,
            "prediction": prediction,
            "answer": question.answer,
            "correct": prediction == question.answer,
            "scale": scale,
            "error": None,
            "duration_s": round(seconds, 6),
        }


def _summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = sorted({line["kind"] for line in lines})
    return {
        "questions": len(lines),
        "errors": sum(line["error"] is not None for line in lines),
        "unparsed": sum(line.get("unparsed", False) for line in lines),
        "accuracy": _mean(lines),
        "kinds": {kind: _mean([line for line in lines if line["kind"] == kind]) for kind in kinds},
        "duration_s": round(sum(line["duration_s"] for line in lines), 3),
    }


def _mean(lines: Sequence[Mapping[str, Any]]) -> float:
    return sum(line["correct"] for line in lines) / len(lines)
