"""V-NIAH and V-NIAH-D as published: each needle at each depth of each length, the film always from its start.

A published frame is one cell: 144 tokens, two frames of the film. Lengths and periods are in cells.
Sources: V-NIAH of LongVA (2406.16852) and its record format; V-NIAH-D of VideoRoPE (2502.05173, section 3).
Deviates: the video stands between its marks, as in training (released: bare visual tokens in the prompt); which side a
distractor takes where both fit comes from a seed (released: the process's generator); a film shorter than a length is
refused (released: repeated).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pipelines.benchmarks.folder import (
    FolderBudget,
    check_grid,
    check_length,
    in_final_cells,
    media_id,
    read_json_records,
    require,
)
from pipelines.benchmarks.videos import NeedleVideo, Question


@dataclass(frozen=True)
class NiahBenchmark:
    """A grid of lengths, depths and needles over the films of a folder; part of every result's identity but for `root`.

    `records` is a JSON file in `root`; `films` and `pictures` are folders in it. `distractor_period`: cells between a
    needle and its distractor, 0 for none.
    """

    kind: Literal["niah"]
    name: str
    root: str
    records: str
    films: str
    pictures: str
    budget: FolderBudget
    contexts: tuple[int, ...]
    depths: tuple[float, ...]
    distractor_period: int
    num_validation_films: int
    preamble: str
    postprompt: str
    seed: int

    context_unit: ClassVar[str] = "cells"
    scorer: ClassVar[str] = "exact_match@1"
    chance: ClassVar[float] = 0.0  # answers are free text or letters with an option's text
    question_kinds: ClassVar[tuple[str, ...]] = ("retrieval",)

    def __post_init__(self) -> None:
        check_grid(self)
        if self.distractor_period < 0:
            raise ValueError(f"benchmark.{self.name}.distractor_period is {self.distractor_period}; 0 is none")

    @property
    def title(self) -> str:
        return self.name.upper().replace("_", "-")

    @property
    def folders(self) -> tuple[str, ...]:
        return (self.films, self.pictures)


@dataclass(frozen=True)
class NiahRecord:
    """One line of `needles.json`: pictures by media id, and what is asked."""

    id: str
    picture: str
    distractor: str | None
    prompt: str
    answer: str


def read_records(benchmark: NiahBenchmark) -> tuple[NiahRecord, ...]:
    """The records of LongVA's `path`, `prompt` and `answer`, with `interrupt_path` for V-NIAH-D.

    Raises ValueError for a file or record of another form.
    """
    path = Path(benchmark.root) / benchmark.records
    made = []
    for number, record in enumerate(read_json_records(path)):
        found = require(record, ("path", "prompt", "answer"), path, number)
        distractor = record.get("interrupt_path")
        if distractor is None and benchmark.distractor_period:
            raise ValueError(
                f"{path} record {number}: no interrupt_path; set benchmark.{benchmark.name}.distractor_period=0"
            )
        made.append(
            NiahRecord(
                id=f"{number:02d}",
                picture=media_id(benchmark.pictures, found["path"]),
                distractor=None if distractor is None else media_id(benchmark.pictures, str(distractor)),
                prompt=found["prompt"],
                answer=found["answer"],
            )
        )
    return tuple(made)


def compose(
    benchmark: NiahBenchmark, records: Sequence[NiahRecord], *, films: Mapping[str, int | None], context: int
) -> list[NeedleVideo]:
    """The videos of one length: every depth of every record in every film.

    films: id -> cells, None where that is not known (the film cannot be read). Raises ValueError for a film too short.
    """
    check_length(benchmark.name, films, context)
    videos = []
    for film in sorted(films):
        for depth_number, depth in enumerate(benchmark.depths):
            for number, record in enumerate(records):
                place = int(depth * context + 1e-9)  # 0.6 * 1500 is 899.99...
                rng = np.random.default_rng([benchmark.seed, context, depth_number, number])
                insertions = [(place, record.picture)]
                if record.distractor is not None and benchmark.distractor_period:
                    side = _side(rng, place, context, benchmark.distractor_period)
                    if side:
                        insertions.append((place + side * benchmark.distractor_period, record.distractor))
                video_id = f"{film}/{context}/{depth_number:02d}/{record.id}"
                question = Question(
                    f"{video_id}/retrieval", "retrieval", record.prompt + benchmark.postprompt, record.answer
                )
                videos.append(
                    NeedleVideo(
                        id=video_id,
                        film=film,
                        start=0,
                        num_film_cells=context,
                        context_frames=context,
                        depth=depth,
                        insertions=in_final_cells(insertions),
                        questions=(question,),
                        before=benchmark.preamble,
                    )
                )
    return videos


def _side(rng: np.random.Generator, place: int, context: int, period: int) -> int:
    """1 for a distractor after the needle, -1 before it, 0 for none: the released rule."""
    before, after = place - period >= 0, place + period < context
    if place - period <= 0 and not after:
        return 0
    if not before:
        return 1
    if not after:
        return -1
    return 1 if rng.random() < 0.5 else -1
