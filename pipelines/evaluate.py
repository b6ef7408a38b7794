"""The evaluate stage: one trial's checkpoint on one benchmark at one scale, over every context length.

Every question is a line of `questions.jsonl`, written as it is answered; a restarted stage goes on after the last line.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.accuracies import mean, summary
from pipelines.asked import Asked, Videos
from pipelines.attention import load_to_answer
from pipelines.benchmarks.needles import NeedleBenchmark, check_split
from pipelines.benchmarks.scoring import parse_answer
from pipelines.benchmarks.videos import NeedleVideo, Question
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.features import open_features
from pipelines.models import text_ids
from pipelines.question_lines import append_lines, whole_lines

# The stage is declared, and its study planned, without torch and transformers, which take seconds to import: what
# answers brings them.
if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.prefill import Reader

# Visual tokens of the videos that are answered together where they share nothing: bounds the memory of a batch.
TOKENS_PER_BATCH = 8192
# What is generated where the option that an answer names is scored.
NEW_TOKENS = 16


@dataclass(frozen=True)
class EvaluateIdentity:
    """`scale`: positions per cell; None where the variant has none. It is read from the `scale` input if given.

    `contexts`: lengths in the benchmark's own unit.
    """

    asked: Asked
    contexts: tuple[int, ...]
    scale: float | None


@dataclass(frozen=True)
class EvaluatePlacement:
    """`chunk_tokens`: tokens of a row in one forward; they and the keys and values bound the memory."""

    chunk_tokens: int


def evaluate_stage(
    asked: Asked,
    contexts: Sequence[int],
    scale: float | None,
    *,
    checkpoint: Stage,
    features: Stage,
    dataset: Stage | None = None,
    placement: EvaluatePlacement,
    chosen_scale: Stage | None = None,
    group: str,
) -> Stage:
    """`dataset`: of the drawn needles. With `chosen_scale`, the scale search whose choice replaces `scale`.

    Raises ValueError where the data set draws too few films for the questions of both splits.
    """
    inputs = {"checkpoint": checkpoint, "features": features}
    if isinstance(asked, NeedleBenchmark):
        assert dataset is not None
        check_split(asked.name, asked.num_validation_films, dataset.config.identity.num_films)
        inputs["dataset"] = dataset
    if chosen_scale is not None:
        inputs["scale"] = chosen_scale
    at = "searched scale" if chosen_scale is not None else "no scale" if scale is None else f"scale {scale:g}"
    return Stage(
        name="evaluate",
        code_version=4,
        run=run,
        config=StageConfig(EvaluateIdentity(asked, tuple(contexts), scale), placement),
        inputs=inputs,
        label=f"evaluate {group} on {asked.name}, {at}",
        resumable=True,
        process_group=group,
        work_units=sum(contexts) * asked.num_videos_per_context,
    )


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Answer every test question and write `questions.jsonl`; the result has accuracies by context and kind.

    `prefill` counts, by context, the cells that went through the model in this attempt, and those that a loop of one
    full forward for each question would have taken.
    """
    identity: EvaluateIdentity = config.identity
    scale = inputs["scale"].result["chosen"] if "scale" in inputs else identity.scale
    evaluator = Evaluator(inputs, identity.asked, split="test", chunk_tokens=config.placement.chunk_tokens)
    path = out_dir / "questions.jsonl"
    lines = whole_lines(path)
    answers = evaluator.all_answers(identity.contexts, scale, skip=frozenset(line["id"] for line in lines))
    lines += append_lines(path, answers)
    return {
        "scale": scale,
        "questions": len(lines),
        "accuracy": mean(lines),
        "contexts": {
            str(context): summary([line for line in lines if line["context"] == context])
            | {"prefill": asdict(evaluator.prefill[context])}
            for context in identity.contexts
        },
    }


@dataclass
class Prefill:
    """Cells that went through the model, and those that one full forward for each question would have taken."""

    cells: int = 0
    naive_cells: int = 0


class Evaluator:
    """A loaded checkpoint with its benchmark's videos; answers them at any scale."""

    def __init__(self, inputs: Mapping[str, Artifact], asked: Asked, *, split: str, chunk_tokens: int) -> None:
        from transformers import AutoTokenizer

        from pipelines.prefill import layout_of

        self._chunk_tokens = chunk_tokens
        self._model = load_to_answer(inputs["checkpoint"].path / "checkpoint")
        self._tokenizer = AutoTokenizer.from_pretrained(inputs["checkpoint"].path / "checkpoint")
        self._layout = layout_of(self._model, self._tokenizer)
        self._features = open_features(inputs["features"].path)
        dataset = inputs["dataset"].path if "dataset" in inputs else None
        self._videos = Videos(asked, self._features, split=split, dataset=dataset, tokenizer=self._tokenizer)
        self.prefill: dict[int, Prefill] = defaultdict(Prefill)  # by context

    def videos(self, context: int) -> list[NeedleVideo]:
        frames_per_cell = self._model.config.vision_config.temporal_patch_size
        return self._videos.of_length(context, frames_per_cell=frames_per_cell)

    def answers(
        self, context: int, scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]:
        """One record per question of this length that is not in `skip`, in a fixed order."""
        return self.all_answers((context,), scale, skip=skip)

    def all_answers(
        self, contexts: Sequence[int], scale: float | None, *, skip: frozenset[str] = frozenset()
    ) -> Iterator[dict[str, Any]]:
        """The same of several lengths, which share what their videos begin with. The order depends on no `skip`."""
        videos = [video for context in contexts for video in self.videos(context)]
        waiting = [video for video in videos if not all(question.id in skip for question in video.questions)]
        readable = []
        for video in waiting:
            if any(media not in self._features.spans for media in video.media):
                yield from self._errors(video, scale, skip)
            else:
                readable.append(video)
        for group in self._trees(readable) if self._videos.share_prefixes else self._batches(readable):
            yield from self._read(group, scale, skip)

    def _trees(self, videos: Sequence[NeedleVideo]) -> Iterator[list[list[NeedleVideo]]]:
        """For each film its videos, those with a common beginning side by side."""
        from pipelines.prefill import cell_numbers

        films: dict[str, list[NeedleVideo]] = {}
        for video in videos:
            films.setdefault(video.film, []).append(video)
        for of_film in films.values():
            of_film.sort(key=lambda video: (video.before, cell_numbers(video, self._features).astype(">u4").tobytes()))
            yield [[video] for video in of_film]

    def _batches(self, videos: Sequence[NeedleVideo]) -> Iterator[list[list[NeedleVideo]]]:
        """Videos whose rows have the same lengths, in order, as many as TOKENS_PER_BATCH allows."""
        for (num_cells, *_), alike in groupby(videos, key=self._lengths):
            size = max(1, TOKENS_PER_BATCH // (num_cells * self._features.tokens_per_cell))
            rows = list(alike)
            yield from ([rows[first : first + size]] for first in range(0, len(rows), size))

    def _read(
        self, group: Sequence[Sequence[NeedleVideo]], scale: float | None, skip: frozenset[str]
    ) -> Iterator[dict[str, Any]]:
        """Answer batches of videos one after the other on the same kept keys and values."""
        import torch

        from pipelines.prefill import Reader

        reader = Reader(
            self._model,
            self._features.table.flatten(0, 1),
            scale=scale,
            capacity=max(self._length(video) for batch in group for video in batch),
            chunk_tokens=self._chunk_tokens,
        )
        for batch in group:
            start = time.perf_counter()
            read, naive = reader.read_tokens, reader.naive_tokens
            rows = torch.stack([self._sources(video) for video in batch])
            asked = range(len(batch[0].questions))
            answered = [self._answer(reader, rows, batch, [video.questions[n] for video in batch]) for n in asked]
            seconds = (time.perf_counter() - start) / (len(asked) * len(batch))
            count = self.prefill[batch[0].context]
            count.cells += (reader.read_tokens - read) // self._features.tokens_per_cell
            count.naive_cells += (reader.naive_tokens - naive) // self._features.tokens_per_cell
            for place, video in enumerate(batch):
                for question, made in zip(video.questions, answered, strict=True):
                    if question.id not in skip:
                        yield self._record(video, question, scale, seconds) | made[place]

    def _answer(
        self, reader: Reader, rows: Tensor, videos: Sequence[NeedleVideo], questions: Sequence[Question]
    ) -> list[dict[str, Any]]:
        """Prediction and score for one question of each video of a batch."""
        import torch

        from pipelines.generate import end_ids
        from pipelines.prefill import shown

        shown_videos = [shown(video, self._features) for video in videos]
        asked = [text_ids(self._tokenizer, question.prompt) for question in questions]
        if questions[0].options:
            row = torch.cat([rows, torch.tensor(asked)], dim=1)
            stops = end_ids(self._model, self._tokenizer)
            ids = reader.generate(row, shown_videos[0], max_new_tokens=NEW_TOKENS, stops=stops)
            made = self._tokenizer.decode(ids, skip_special_tokens=True)
            named, wanted_option = (parse_answer(text, questions[0].options) for text in (made, questions[0].answer))
            correct = named is not None and named == wanted_option
            return [{"prediction": made, "correct": correct, "unparsed": named is None}]
        wanted = [text_ids(self._tokenizer, question.answer) for question in questions]
        tails = torch.tensor([ask + want[:-1] for ask, want in zip(asked, wanted, strict=True)])
        logits = reader.logits(torch.cat([rows, tails], dim=1), shown_videos, last=len(wanted[0]))
        best = logits.argmax(-1).tolist()
        return [
            {"prediction": self._tokenizer.decode(ids), "correct": ids == want}
            for ids, want in zip(best, wanted, strict=True)
        ]

    def _lengths(self, video: NeedleVideo) -> list[int]:
        """The cells of a video, the tokens of its row before a question, and of each question and of its answer."""
        texts = [text for question in video.questions for text in (question.prompt, question.answer)]
        before = len(self._sources(video))
        return [video.num_cells, before, *(len(text_ids(self._tokenizer, text)) for text in texts)]

    def _length(self, video: NeedleVideo) -> int:
        """The most tokens that a row of this video has."""
        texts = max(
            len(text_ids(self._tokenizer, question.prompt))
            + max(NEW_TOKENS, len(text_ids(self._tokenizer, question.answer)))
            for question in video.questions
        )
        return len(self._sources(video)) + texts

    def _sources(self, video: NeedleVideo) -> Tensor:
        """All of a video's row that comes before a question."""
        from pipelines.prefill import video_sources

        return video_sources(video, self._features, self._layout)

    def _errors(self, video: NeedleVideo, scale: float | None, skip: frozenset[str]) -> Iterator[dict[str, Any]]:
        lacking = [media for media in video.media if media not in self._features.spans]
        cause = "; ".join(f"{media}: {self._features.missing.get(media, 'no such file')}" for media in lacking)
        for question in video.questions:
            if question.id not in skip:
                yield self._record(video, question, scale, 0.0) | {"error": cause}

    def _record(self, video: NeedleVideo, question: Question, scale: float | None, seconds: float) -> dict[str, Any]:
        """A question's line, not answered yet."""
        return {
            "id": question.id,
            "benchmark": self._videos.name,
            "video": video.film,
            "kind": question.kind,
            "context": video.context,
            "depth": video.depth,
            "prompt": question.prompt,
            "prediction": "",
            "answer": question.answer,
            "correct": False,
            "scale": scale,
            "error": None,
            "duration_s": round(seconds, 6),
        }
