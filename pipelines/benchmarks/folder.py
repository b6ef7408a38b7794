"""What needle benchmarks from a folder have in common: films and pictures in it, records in JSON, a grid of lengths.

The folder's path is placement. Its content is the identity: the records as read, and the digest of its media.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from pipelines.benchmarks.source import digest
from pipelines.benchmarks.videos import NeedleVideo, Question
from pipelines.data_stages import frames_stage
from pipelines.engine import Stage
from pipelines.preprocess import MediaSource, PreprocessPlacement, matching_files
from pipelines.video.budget import FrameBudget

# The source name of every such folder: two benchmarks on the same films share their frames and features.
SOURCE = "folder"


@dataclass(frozen=True)
class FolderBudget:
    """How the films and pictures of a benchmark's folder are decoded; sizes in pixels, the same for all of them."""

    fps: float
    max_frames: int
    frame_height: int
    frame_width: int


@dataclass(frozen=True)
class FolderBenchmark:
    """A grid of lengths and depths over the films of a folder; part of every result's identity but for `root`.

    `records` is a JSON file in `root`; `films` and `pictures` are folders in it. Every file in `films` is a film; what
    records name may lie in sub-folders. Names that start with a dot are nothing. Lengths are in cells.
    """

    kind: str
    name: str
    root: str
    records: str
    films: str
    pictures: str
    budget: FolderBudget
    contexts: tuple[int, ...]
    depths: tuple[float, ...]
    num_validation_films: int
    preamble: str
    postprompt: str
    seed: int

    context_unit: ClassVar[str] = "cells"

    def __post_init__(self) -> None:
        place = f"benchmark.{self.name}"
        if not self.contexts or min(self.contexts) < 1:
            raise ValueError(f"{place}.contexts is {list(self.contexts)}; give lengths of 1 cell or more")
        if not self.depths or any(not 0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"{place}.depths is {list(self.depths)}; give numbers from 0 to 1")
        for name in ("films", "pictures"):
            if PurePath(getattr(self, name)).is_absolute():
                raise ValueError(f"{place}.{name} is {getattr(self, name)!r}; give a folder in {place}.root")
        if self.num_validation_films < 0:
            raise ValueError(f"{place}.num_validation_films is {self.num_validation_films}; it must be 0 or more")

    @property
    def title(self) -> str:
        return self.name.upper().replace("_", "-")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders whose files are shown."""
        return (self.films, self.pictures)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Globs of the files that are shown."""
        return (f"{self.films}/*", f"{self.pictures}/**/*")


@dataclass(frozen=True)
class FolderRecord:
    """What is asked: with `pictures` in a film, by media id, or of a `video` of its own; `options` to choose from."""

    id: str
    prompt: str
    answer: str
    pictures: tuple[str, ...] = ()
    video: str | None = None
    options: tuple[str, ...] = ()


def media_id(folder: str, path: str) -> str:
    """The id of a file in the frames and features of the benchmark's folder."""
    return f"{SOURCE}/{folder}/{path}"


def media_digest(root: Path, patterns: Sequence[str]) -> str:
    """The digest of the files that these globs name. Raises ValueError for one that names none."""
    media: list[str] = []
    for pattern in patterns:
        files = matching_files(root, pattern)
        if not files:
            raise ValueError(
                f"no file matches {pattern} in {root}; set the benchmark's root to the folder that holds them"
            )
        media += [path.relative_to(root).as_posix() for path in files]
    return digest(root, (), media)


def folder_frames_stage(
    name: str, root: Path, patterns: Sequence[str], content: str, budget: FrameBudget, placement: PreprocessPlacement
) -> Stage:
    """Decode the films and pictures that these globs name in `root`; what cannot be decoded stops nothing.

    content: their `media_digest`.
    """
    source = MediaSource(name=SOURCE, files=tuple(patterns), content=content)
    return frames_stage(source, budget, placement, root=str(root), quarantine_limit=1.0, label=f"decode {name}")


def read_json_records(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON array. Raises ValueError in one line."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from None
    if not isinstance(records, list) or not records or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(f"{path} is no JSON array of records; give a list of objects")
    return records


def require(record: Mapping[str, Any], names: Sequence[str], path: Path, number: int) -> dict[str, str]:
    """The texts of these fields. Raises ValueError for one that is missing or no text."""
    for name in names:
        if not isinstance(record.get(name), str):
            raise ValueError(f"{path} record {number}: {name!r} must be a text; the record has {', '.join(record)}")
    return {name: record[name] for name in names}


def make_video(
    benchmark: FolderBenchmark,
    record: FolderRecord,
    kind: str,
    *,
    film: str,
    num_film_cells: int,
    context: int,
    depth: tuple[int, float | None],
    pictures: Iterable[tuple[int, str]] = (),
    noise_before: str = "",
    noise_after: str = "",
) -> NeedleVideo:
    """A film from its start with a record's question after it.

    depth: its number in the grid, and itself if it has one. pictures: each with the film cell that it is put in front
    of; ties keep their order.
    """
    number, share = depth
    video_id = f"{film}/{context}/{number:02d}/{record.id}"
    in_order = sorted(pictures, key=lambda item: item[0])
    prompt = noise_after + record.prompt + benchmark.postprompt
    return NeedleVideo(
        id=video_id,
        film=film,
        start=0,
        num_film_cells=num_film_cells,
        context=context,
        depth=share,
        insertions=tuple((place + before, picture) for before, (place, picture) in enumerate(in_order)),
        questions=(Question(f"{video_id}/{kind}", kind, prompt, record.answer, record.options),),
        before=benchmark.preamble + noise_before,
    )


def check_length(name: str, films: Mapping[str, int | None], context: int) -> None:
    """Raise ValueError for a film that is shorter than a context; None is a film that cannot be read."""
    for film, cells in films.items():
        if cells is not None and cells < context:
            raise ValueError(
                f"benchmark.{name}: film {film} has {cells} cells, a context {context}; lower contexts, raise "
                f"budget.fps or budget.max_frames, or take the film out"
            )
