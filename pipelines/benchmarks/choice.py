"""Multiple-choice questions on videos, from files in a folder: a benchmark is a YAML file, without code.

The folder is placement; what it holds is identified by its content digest (pipelines/benchmarks/source.py). Formats and
prompts of MLVU, LongVideoBench and Video-MME are those that lmms-eval and the papers' forks of it use.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import ClassVar, Literal

from pipelines.benchmarks.scoring import PublishedRule
from pipelines.video.budget import FrameBudget


@dataclass(frozen=True)
class Fields:
    """Where a record holds what. `options`: a list, or one field per option, or null: lines of the question.

    An option that is null or "N/A" is not asked; letters and indices (from 0) of answers count it all the same.
    `kind`: what results are broken down by, and macro means go over; `groups`: further breakdowns.
    """

    question: str
    options: str | tuple[str, ...] | None
    answer: str
    answer_is: Literal["letter", "index", "text"]
    id: str | None = None
    kind: str | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Validation and test questions, held apart by video.

    By a field that the benchmark ships (its values `validation` are for the scale search), else a share of the videos.
    """

    validation_share: float = 0.2
    seed: int = 0
    field: str | None = None
    validation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"splits.validation_share is {self.validation_share}; give a share from 0 to below 1")
        if bool(self.field) != bool(self.validation):
            raise ValueError("splits.field and splits.validation go together: a field, and its values for validation")


@dataclass(frozen=True)
class Published:
    """How the published harness scores: how it reads an answer, and which mean it reports."""

    rule: PublishedRule
    mean: Literal["micro", "macro"]


@dataclass(frozen=True)
class ContextBudget:
    """What a video may cost at a context of so many visual tokens (the papers: 2 fps, 7 frames per 1000 tokens).

    min_tokens and max_tokens bound one frame's share before two frames become one cell.
    """

    fps: float = 2.0
    frames_per_1000_tokens: float = 7.0
    min_frames: int = 4
    min_tokens: int = 128
    max_tokens: int = 768
    sampler: str = "endpoints"

    def at(self, context_tokens: int, *, patch_size: int, merge_size: int, temporal_patch_size: int) -> FrameBudget:
        pixels_per_token = (patch_size * merge_size) ** 2
        cells = int(context_tokens / 1000 * self.frames_per_1000_tokens / temporal_patch_size)
        return FrameBudget(
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=max(self.min_frames, cells * temporal_patch_size),
            total_pixels=context_tokens * pixels_per_token,
            min_pixels=self.min_tokens * pixels_per_token,
            max_pixels=self.max_tokens * pixels_per_token,
            sampler=self.sampler,
            patch_size=patch_size,
            merge_size=merge_size,
            temporal_patch_size=temporal_patch_size,
        )


@dataclass(frozen=True)
class ChoiceBenchmark:
    """A benchmark of multiple-choice questions.

    root, file: the folder, and the annotation files in it (a glob; .json, .jsonl or .parquet). media: a video's path
    below the root. media, option and prompt hold {FIELD}s of the record; media has {file} too, the annotation's name
    without suffix, option has {letter} and {text}, and prompt has {question} and {options}, the options' lines. A
    record that lacks one is an error; braces around quotes, colons or commas that are no field's name are text.
    keep, drop: by field, a regular expression that must be, or may not be, found in its value.
    scoring "ours" counts what `scoring.parse_answer` reads, and means over questions; "published" as `published` says.
    """

    kind: Literal["choice"]
    name: str
    title: str
    root: str
    file: str
    media: str
    fields: Fields
    option: str
    prompt: str
    max_new_tokens: int
    published: Published
    contexts_tokens: tuple[int, ...]
    scoring: Literal["ours", "published"] = "ours"
    keep: Mapping[str, str] | None = None
    drop: Mapping[str, str] | None = None
    splits: Splits = Splits()
    budget: ContextBudget = ContextBudget()

    context_unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        place = f"benchmarks.{self.name}"
        if "{options}" not in self.prompt and self.fields.options is not None:
            raise ValueError(f"{place}.prompt does not show the options; put {{options}} into it")
        if PurePath(self.file).is_absolute():
            raise ValueError(
                f"{place}.file is {self.file!r}; give a path or glob below {place}.root, and set that to its folder"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"{place}.max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if not self.contexts_tokens or min(self.contexts_tokens) < 1:
            raise ValueError(f"{place}.contexts_tokens is {list(self.contexts_tokens)}; give visual tokens above 0")
        for field, pattern in {**(self.keep or {}), **(self.drop or {})}.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{place} filters {field} by {pattern!r}, which is no pattern: {error}") from None

    @property
    def scorer(self) -> str:
        """Names the rule that the accuracies follow."""
        return "choice@2" if self.scoring == "ours" else f"published:{self.published.rule},{self.published.mean}@1"

    @property
    def identity(self) -> "ChoiceBenchmark":
        """What counts for identity: all but where the folder lies."""
        return replace(self, root="")

    def absent(self) -> str:
        """What to do where the folder holds no annotation, in one line."""
        return (
            f"benchmarks.{self.name}.root is {self.root!r}, where no file is {self.file}; put the benchmark there, or "
            f"set benchmarks.{self.name}.root=FOLDER"
        )
