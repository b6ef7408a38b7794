"""What a study asks of a trial: each benchmark's lengths and question set, and the stages that ask it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.config import Config
from experiments.training import cell_side
from pipelines.asked import FolderQuestions, read_folder
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.folder import FolderBenchmark, folder_frames_stage, media_digest
from pipelines.benchmarks.records import Survey, survey
from pipelines.benchmarks.source import ABSENT
from pipelines.engine import Stage, encode, fingerprint
from pipelines.evaluate_choice import choice_frames_stage, choice_inputs, questions_stage
from pipelines.preprocess import PreprocessPlacement
from pipelines.video.budget import FrameBudget

Surveys = Mapping[str, Survey]


@dataclass(frozen=True)
class ChoiceStages:
    """A multiple-choice benchmark's stages, shared by all trials; `frames` and `budgets` by context."""

    benchmark: ChoiceBenchmark
    survey: Survey
    questions: Stage
    frames: dict[int, Stage]
    budgets: dict[int, FrameBudget]

    @property
    def missing(self) -> str | None:
        """Why it cannot run, if it cannot; it can be planned."""
        return self.benchmark.absent() if self.survey.digest == ABSENT else None

    def inputs(self, checkpoint: Stage, contexts: tuple[int, ...]) -> dict[str, Stage]:
        """What answering at these contexts rests on."""
        return choice_inputs(checkpoint, self.questions, {context: self.frames[context] for context in contexts})


@dataclass(frozen=True)
class NeedleFolder:
    """A needle benchmark that lies in a folder: its questions and the stage that decodes its media, for all trials.

    `missing` says why it cannot run, if it cannot; it can be planned.
    """

    asked: FolderQuestions
    content: str
    frames: Stage
    budget: FrameBudget
    missing: str | None


def needle_folders(config: Config, placement: PreprocessPlacement) -> dict[str, NeedleFolder]:
    """The study's needle benchmarks from folders. Raises ValueError for records that cannot be used."""
    found = {}
    for name, benchmark in config.benchmarks.items():
        if not isinstance(benchmark, FolderBenchmark):
            continue
        root, limits = Path(benchmark.root), benchmark.budget
        budget = FrameBudget(
            fps=limits.fps,
            max_frames=limits.max_frames,
            frame_size=(limits.frame_height, limits.frame_width),
            patch_size=config.model.patch_size,
            merge_size=config.model.spatial_merge_size,
            temporal_patch_size=config.model.temporal_patch_size,
        )
        needed = [benchmark.records, *benchmark.folders]
        absent = [part for part in needed if not (root / part).exists()]
        missing = f"benchmarks.{name}.root {root} has no {', '.join(absent)}; put the folder there or set root"
        content = ABSENT if absent else media_digest(root, benchmark.patterns)
        frames = folder_frames_stage(benchmark.name, root, benchmark.patterns, content, budget, placement)
        asked = read_folder(benchmark, absent=bool(absent))
        found[name] = NeedleFolder(asked, content, frames, budget, missing if absent else None)
    return found


def read_folders(config: Config) -> Surveys:
    """What the folders of the study's multiple-choice benchmarks hold, by benchmark."""
    return {
        name: survey(benchmark)
        for name, benchmark in config.benchmarks.items()
        if isinstance(benchmark, ChoiceBenchmark)
    }


def choice_stages(config: Config, name: str, found: Survey, placement: PreprocessPlacement) -> ChoiceStages:
    """The stages of one benchmark for the config's model, whose patches set the size of frames."""
    benchmark, model = config.benchmarks[name], config.model
    assert isinstance(benchmark, ChoiceBenchmark)
    questions = questions_stage(benchmark, found.digest)
    budgets = {
        context: benchmark.budget.at(
            context,
            patch_size=model.patch_size,
            merge_size=model.spatial_merge_size,
            temporal_patch_size=model.temporal_patch_size,
        )
        for context in benchmark.contexts_tokens
    }
    frames = {
        context: choice_frames_stage(benchmark, questions, budget, context, placement)
        for context, budget in budgets.items()
    }
    return ChoiceStages(benchmark, found, questions, frames, budgets)


def contexts_of(config: Config, benchmark: str) -> tuple[int, ...]:
    """The lengths that a benchmark is asked at, in its own unit."""
    found = config.benchmarks[benchmark]
    if isinstance(found, FolderBenchmark):
        return found.contexts
    return found.contexts_tokens if isinstance(found, ChoiceBenchmark) else config.study.contexts_frames


def train_length(config: Config, benchmark: str) -> int:
    """The length of training in the benchmark's unit: what its contexts are multiples of."""
    study = config.study
    if config.benchmarks[benchmark].context_unit == "frames":
        return study.train_frames
    if config.benchmarks[benchmark].context_unit == "cells":
        return study.train_frames // config.model.temporal_patch_size
    return study.train_tokens or study.train_frames // config.model.temporal_patch_size * cell_side(config) ** 2


def question_set(config: Config, benchmark: str, surveys: Surveys, folders: Mapping[str, NeedleFolder]) -> str:
    """A short hash of what is asked: the benchmark's definition and the files it is drawn from, or lies in.

    It follows the content of a benchmark's folder: changed content is another question set.
    """
    found = config.benchmarks[benchmark]
    if isinstance(found, ChoiceBenchmark):
        asked = {"benchmark": encode(found.identity), "content": surveys[benchmark].digest}
    elif benchmark in folders:
        asked = {"benchmark": encode(folders[benchmark].asked), "content": folders[benchmark].content}
    else:
        asked = {"benchmark": encode(found), "dataset": encode(config.dataset)}
    return fingerprint(asked)[:12]
