"""V-RULER: counting, ordering, many keys with many values, and the lengthy multimodal stack.

Source: VideoRoPE++ (`videorope_plus/v_ruler`), its record files as released. Lengths are in cells, as in `niah`.
Deviates: `depth` is asked for where it moves something only, so counting and ordering have one video a length and
record (released: one and the same for each of six depths). Random places come from a seed. The stack's video has the
folder's frame size (released: its own, within 32k tokens), its noise fills a context up to its tokens, and its answers
are read as those of every multiple-choice benchmark (released: by their first letter).
"""

import ast
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

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
from pipelines.benchmarks.scoring import parse_answer
from pipelines.benchmarks.videos import NeedleVideo

COUNTING, ORDERING, MULTI_KEY, STACK = "counting", "ordering", "multi_key_multi_value", "lengthy_multimodal_stack"
Task = Literal["counting", "ordering", "multi_key_multi_value", "lengthy_multimodal_stack"]
NOISE = "This is noise text, please ignore it."


@dataclass(frozen=True)
class RulerBenchmark(FolderBenchmark):
    """One of V-RULER's tasks.

    The stack's `films` are the records' own videos, and its noise fills a context of as many tokens. `depth_window`:
    the share of a video that holds all needles of a multi-key record.
    """

    kind: Literal["ruler"]
    task: Task
    depth_window: float

    chance: ClassVar[float] = 0.25  # most records have four options

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.depth_window <= 1:
            raise ValueError(
                f"benchmark.{self.name}.depth_window is {self.depth_window}; give a share above 0, up to 1"
            )

    @property
    def scorer(self) -> str:
        return "choice@2" if self.task == STACK else "exact_match@1"

    @property
    def question_kinds(self) -> tuple[str, ...]:
        return (self.task,)

    @property
    def folders(self) -> tuple[str, ...]:
        return (self.films,) if self.task == STACK else super().folders

    @property
    def patterns(self) -> tuple[str, ...]:
        return (f"{self.films}/**/*",) if self.task == STACK else super().patterns


def read_records(benchmark: RulerBenchmark) -> tuple[FolderRecord, ...]:
    """The records of the task's released file. Raises ValueError for a file or record of another form."""
    path = Path(benchmark.root) / benchmark.records
    read = _stack_record if benchmark.task == STACK else _needle_record
    return tuple(read(benchmark, record, path, number) for number, record in enumerate(read_json_records(path)))


def _needle_record(benchmark: RulerBenchmark, record: Mapping[str, Any], path: Path, number: int) -> FolderRecord:
    found = require(record, ("prompt", "answer"), path, number)
    names = record.get("path")
    if isinstance(names, str):  # multi_key_multi_value.json writes its list as a text
        with contextlib.suppress(ValueError, SyntaxError):
            names = ast.literal_eval(names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} record {number}: 'path' is {names!r}; it must be a list of pictures")
    pictures = tuple(media_id(benchmark.pictures, name) for name in names)
    return FolderRecord(f"{number:02d}", found["prompt"], found["answer"], pictures)


def _stack_record(benchmark: RulerBenchmark, record: Mapping[str, Any], path: Path, number: int) -> FolderRecord:
    found = require(record, ("question", "video_path", "answer"), path, number)
    options = record.get("candidates")
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{path} record {number}: 'candidates' is {options!r}; it must be a list of options")
    if parse_answer(found["answer"], options) is None:
        raise ValueError(f"{path} record {number}: 'answer' is {found['answer']!r}; it must name one of the candidates")
    listed = [f"({chr(ord('A') + place)}) {option}" for place, option in enumerate(options)]
    prompt = "\n".join([f"Question: {found['question']}", "Options:", *listed])
    video = media_id(benchmark.films, found["video_path"])
    return FolderRecord(f"{number:02d}", prompt, found["answer"], video=video, options=tuple(options))


def compose(
    benchmark: RulerBenchmark,
    records: Sequence[FolderRecord],
    *,
    films: Mapping[str, int | None],
    context: int,
    num_noises: int,
) -> list[NeedleVideo]:
    """The videos of one length.

    films: id -> cells, None where that is not known (the film cannot be read). `num_noises`: noise sentences that fill
    a stack. Raises ValueError for a film too short.
    """
    if benchmark.task == STACK:
        return _stacks(benchmark, records, films, context, num_noises)
    check_length(benchmark.name, films, context)
    depths = benchmark.depths if benchmark.task == MULTI_KEY else (None,)
    videos = []
    for film in sorted(films):
        for depth_number, depth in enumerate(depths):
            for number, record in enumerate(records):
                if depth is None:
                    # The released code puts a picture behind the chosen film frame.
                    places = np.linspace(0, context - 1, len(record.pictures), dtype=int) + 1
                else:
                    rng = np.random.default_rng([benchmark.seed, context, depth_number, number])
                    first = int(depth * context + 1e-9)
                    last = min(int((depth + benchmark.depth_window) * context + 1e-9), context)
                    if last <= first:
                        raise ValueError(
                            f"benchmark.{benchmark.name}.depths has {depth}, which leaves no room for needles in "
                            f"{context} cells; give depths below 1"
                        )
                    places = np.sort(rng.integers(first, last, len(record.pictures)))
                videos.append(
                    make_video(
                        benchmark,
                        record,
                        benchmark.task,
                        film=film,
                        num_film_cells=context,
                        context=context,
                        depth=(depth_number, depth),
                        pictures=zip(places.tolist(), record.pictures, strict=True),
                    )
                )
    return videos


def _stacks(
    benchmark: RulerBenchmark,
    records: Sequence[FolderRecord],
    films: Mapping[str, int | None],
    context: int,
    num_noises: int,
) -> list[NeedleVideo]:
    """At depth d a share d of the noise comes after the video, the rest before it."""
    videos = []
    for depth_number, depth in enumerate(benchmark.depths):
        for record in records:
            if record.video is None or record.video not in films:
                continue
            videos.append(
                make_video(
                    benchmark,
                    record,
                    benchmark.task,
                    film=record.video,
                    num_film_cells=films[record.video] or 0,
                    context=context,
                    depth=(depth_number, depth),
                    noise_before=NOISE * int(num_noises * (1 - depth) + 1e-9),
                    noise_after=NOISE * int(num_noises * depth + 1e-9),
                )
            )
    return videos
