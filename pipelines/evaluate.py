"""The evaluate stage: one trial's checkpoint on one benchmark at one scale, over every context length.

Every question is a line of `questions.jsonl`, written as it is answered; a restarted stage goes on after the last line.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hope_core.modeling import load
from pipelines.benchmarks.needles import NeedleBenchmark, NeedleVideo, Question, compose, split_films
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.features import open_features, read_needles
from pipelines.prefill import answer

# Tokens of one forward: bounds the memory of a batch of videos.
TOKENS_PER_BATCH = 8192


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

    def __init__(self, inputs: Mapping[str, Artifact], benchmark: NeedleBenchmark, *, split: str) -> None:
        self.benchmark = benchmark
        self._model = load(inputs["checkpoint"].path / "checkpoint").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(inputs["checkpoint"].path / "checkpoint")
        self._features = open_features(inputs["features"].path)
        cells = {name: len(tensor) for name, tensor in self._features.films.items()}
        self._films = split_films(cells, benchmark, split)
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
            predictions = answer(self._model, self._tokenizer, self._features, batch, scale=scale)
            seconds = (time.perf_counter() - start) / sum(len(video.questions) for video in batch)
            for video, answered in zip(batch, predictions, strict=True):
                for question, prediction in answered:
                    if question.id not in skip:
                        yield self._record(video, question, prediction, scale, seconds)

    def _batches(self, videos: Sequence[NeedleVideo]) -> Iterator[list[NeedleVideo]]:
        """Videos of one number of cells, in order, as many as TOKENS_PER_BATCH allows."""
        height, width = self._features.grid
        per_cell = height * width // self._model.config.vision_config.spatial_merge_size**2
        batch: list[NeedleVideo] = []
        for video in videos:
            full = (len(batch) + 1) * video.num_cells * per_cell > TOKENS_PER_BATCH
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
        "accuracy": _mean(lines),
        "kinds": {kind: _mean([line for line in lines if line["kind"] == kind]) for kind in kinds},
        "duration_s": round(sum(line["duration_s"] for line in lines), 3),
    }


def _mean(lines: Sequence[Mapping[str, Any]]) -> float:
    return sum(line["correct"] for line in lines) / len(lines)
