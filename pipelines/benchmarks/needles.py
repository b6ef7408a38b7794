"""V-NIAH and V-NIAH-D: needles in a film, at every depth and length.

A *cell* is one temporal patch (temporal_patch_size frames); lengths and periods are given in frames, as published.
Sources: V-NIAH of LongVA (2406.16852); V-NIAH-D of VideoRoPE (2502.05173, section 3), whose distractor lies one period
of M-RoPE's first spatial slot away from the needle.
Deviates: besides the retrieval question each video asks an order question ("first red" of two red needles), whose
answer too lies at the video's depth; and distractors stand at every multiple of the period, not at the first only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pipelines.benchmarks.videos import RETRIEVAL, NeedleVideo, Question

ORDER = "order"
FILM_PREFIX, NEEDLE_PREFIX = "dataset/haystack/", "dataset/needles/"


@dataclass(frozen=True)
class NeedleBenchmark:
    """Which videos are composed and what is asked of them; part of every result's identity."""

    kind: Literal["needles"]
    name: str
    depths: tuple[float, ...]
    videos_per_depth: int
    distractor_period_frames: int  # 0: no distractors
    num_validation_films: int  # the first films; the others are for the test questions
    seed: int

    context_unit: ClassVar[str] = "frames"
    scorer: ClassVar[str] = "exact_match@1"
    chance: ClassVar[float] = 0.1  # one of ten digits
    question_kinds: ClassVar[tuple[str, ...]] = (RETRIEVAL, ORDER)

    @property
    def title(self) -> str:
        return self.name.upper().replace("_", "-")

    @property
    def num_videos_per_context(self) -> int:
        return self.videos_per_depth * len(self.depths)

    def __post_init__(self) -> None:
        if not self.depths or any(not 0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"benchmark.{self.name}.depths is {list(self.depths)}; give numbers from 0 to 1")
        for name in ("videos_per_depth", "num_validation_films"):
            if getattr(self, name) < 1:
                raise ValueError(f"benchmark.{self.name}.{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class Needle:
    """One needle picture: `media` is its id in the frame store."""

    media: str
    marker: str
    prompt: str
    answer: str


def read_needles(path: Path) -> list[Needle]:
    """The needle records of a V-NIAH `needles.json` (LongVA's path, prompt, answer, and a marker)."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [
        Needle(media=f"dataset/{r['path']}", marker=r["marker"], prompt=r["prompt"], answer=r["answer"])
        for r in records
    ]


def check_split(name: str, num_validation_films: int, num_films: int) -> None:
    """Raise ValueError where no film is left for validation or for the test."""
    if not 0 < num_validation_films < num_films:
        raise ValueError(
            f"benchmarks.{name}.num_validation_films is {num_validation_films} of {num_films} films; "
            "leave at least one for validation and one for the test questions"
        )


def split_films(
    films: Mapping[str, int | None], name: str, num_validation_films: int, split: str
) -> dict[str, int | None]:
    """The films (id -> cells) of "validation" or "test"; the two share none. Raises ValueError if one is empty.

    Without any for validation all are for the test.
    """
    names = sorted(films)
    if num_validation_films == 0 and split == "test":
        return dict(films)
    check_split(name, num_validation_films, len(names))
    chosen = {"validation": names[:num_validation_films], "test": names[num_validation_films:]}[split]
    return {film: films[film] for film in chosen}


def compose(
    benchmark: NeedleBenchmark,
    *,
    films: Mapping[str, int],
    needles: Sequence[Needle],
    context_frames: int,
    frames_per_cell: int,
) -> list[NeedleVideo]:
    """The benchmark's videos of one length, the same for every variant, seed and scale.

    films: id -> cells. Raises ValueError when no film is long enough.
    """
    cells = context_frames // frames_per_cell
    long_enough = [name for name in sorted(films) if films[name] >= cells]
    if not long_enough:
        raise ValueError(
            f"context {context_frames} frames is {cells} cells, but the longest film has {max(films.values())}; "
            "lower study.contexts or raise dataset.film_frames"
        )
    by_marker: dict[str, list[Needle]] = {}
    for needle in needles:
        by_marker.setdefault(needle.marker, []).append(needle)
    videos = []
    for number in range(benchmark.videos_per_depth * len(benchmark.depths)):
        depth = benchmark.depths[number // benchmark.videos_per_depth]
        film = long_enough[number % len(long_enough)]
        rng = np.random.default_rng([benchmark.seed, context_frames, number])
        start = int(rng.integers(films[film] - cells + 1))
        period = benchmark.distractor_period_frames // frames_per_cell
        insertions, questions = _place(rng, by_marker, cells=cells, depth=depth, period=period)
        # Without the benchmark's name: V-NIAH and V-NIAH-D differ in their distractors only.
        video_id = f"{film}/{context_frames}/{number:03d}"
        videos.append(
            NeedleVideo(
                id=video_id,
                film=film,
                start=start,
                num_film_cells=cells,
                context=context_frames,
                depth=depth,
                insertions=insertions,
                questions=tuple(Question(f"{video_id}/{kind}", kind, *asked) for kind, asked in questions.items()),
            )
        )
    return videos


def _place(
    rng: np.random.Generator, by_marker: Mapping[str, Sequence[Needle]], *, cells: int, depth: float, period: int
) -> tuple[tuple[tuple[int, str], ...], dict[str, tuple[str, str]]]:
    """Needle pictures by final cell, and (prompt, answer) by kind.

    The single needle and one of the twins lie side by side at the depth; the other twin lies anywhere else, so that
    the first twin answers at depth 0 and the last at depth 1.
    """
    markers = [str(name) for name in rng.permutation(sorted(by_marker))]
    single, twin = _draw(rng, by_marker[markers[0]]), _draw(rng, by_marker[markers[1]])
    other_twin = _draw(rng, [needle for needle in by_marker[markers[1]] if needle.answer != twin.answer])
    at_depth = round(depth * cells)
    elsewhere = int(rng.integers(cells))  # of the cells + 1 places between film cells, any but at_depth
    elsewhere += elsewhere >= at_depth
    pair = [(at_depth, single), (at_depth, twin)]
    placed = [*[pair[i] for i in rng.permutation(2)], (elsewhere, other_twin)]
    if period:
        for place in range(at_depth % period, cells + 1, period):
            if place != at_depth:
                placed.append((place, _draw(rng, by_marker[markers[2 + int(rng.integers(len(markers) - 2))]])))
    placed.sort(key=lambda item: item[0])  # stable: needles of one place keep their order
    insertions = tuple((place + before, needle.media) for before, (place, needle) in enumerate(placed))
    word = "first" if at_depth < elsewhere else "last"
    questions = {
        RETRIEVAL: (single.prompt, single.answer),
        ORDER: (f"{word} {twin.marker}", twin.answer),
    }
    return insertions, questions


def _draw(rng: np.random.Generator, needles: Sequence[Needle]) -> Needle:
    return needles[int(rng.integers(len(needles)))]
