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
    FolderBenchmark,
    FolderRecord,
    check_length,
    make_video,
    media_id,
    read_json_records,
    require,
)
from pipelines.benchmarks.videos import RETRIEVAL, NeedleVideo


@dataclass(frozen=True)
class NiahBenchmark(FolderBenchmark):
    """A grid of lengths, depths and needles. `distractor_period`: cells from a needle to its distractor, 0 for none."""

    kind: Literal["niah"]
    distractor_period: int

    scorer: ClassVar[str] = "exact_match@1"
    chance: ClassVar[float] = 0.0  # answers are free text or letters with an option's text
    question_kinds: ClassVar[tuple[str, ...]] = (RETRIEVAL,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distractor_period < 0:
            raise ValueError(f"benchmark.{self.name}.distractor_period is {self.distractor_period}; 0 is none")


def read_records(benchmark: NiahBenchmark) -> tuple[FolderRecord, ...]:
    """The records of LongVA's `path`, `prompt` and `answer`; with distractors, `interrupt_path` is a second picture.

    Raises ValueError for a file or record of another form.
    """
    path = Path(benchmark.root) / benchmark.records
    made = []
    for number, record in enumerate(read_json_records(path)):
        found = require(record, ("path", "prompt", "answer"), path, number)
        shown = [found["path"]]
        if benchmark.distractor_period:
            if record.get("interrupt_path") is None:
                raise ValueError(
                    f"{path} record {number}: no interrupt_path; set benchmark.{benchmark.name}.distractor_period=0"
                )
            shown.append(str(record["interrupt_path"]))
        pictures = tuple(media_id(benchmark.pictures, name) for name in shown)
        made.append(FolderRecord(f"{number:02d}", found["prompt"], found["answer"], pictures))
    return tuple(made)


def compose(
    benchmark: NiahBenchmark, records: Sequence[FolderRecord], *, films: Mapping[str, int | None], context: int
) -> list[NeedleVideo]:
    """The videos of one length: every depth of every record in every film.

    films: id -> cells, None where that is not known (the film cannot be read). Raises ValueError for a film too short.
    """
    check_length(benchmark.name, films, context)
    period = benchmark.distractor_period
    videos = []
    for film in sorted(films):
        for depth_number, depth in enumerate(benchmark.depths):
            for number, record in enumerate(records):
                place = int(depth * context + 1e-9)  # 0.6 * 1500 is 899.99...
                rng = np.random.default_rng([benchmark.seed, context, depth_number, number])
                pictures = [(place, record.pictures[0])]
                if period and (side := _side(rng, place, context, period)):
                    pictures.append((place + side * period, record.pictures[1]))
                videos.append(
                    make_video(
                        benchmark,
                        record,
                        RETRIEVAL,
                        film=film,
                        num_film_cells=context,
                        context=context,
                        depth=(depth_number, depth),
                        pictures=pictures,
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
