"""A study's grid: its trials, their stages, and the cells that the report compares."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.asking import (
    ChoiceStages,
    NeedleFolder,
    Surveys,
    choice_stages,
    contexts_of,
    needle_folders,
    question_set,
    read_folders,
)
from experiments.axes import matches
from experiments.config import SEARCHED, Config, Setting, StudyConfig
from experiments.training import training_budget, training_data
from experiments.trials import Trial, build_variant, make_trial
from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.engine import Stage
from pipelines.preprocess import PreprocessPlacement
from pipelines.video.budget import FrameBudget


@dataclass(frozen=True)
class Cell:
    """One number of the report: a trial on a benchmark at a context length under a scale rule."""

    trial: Trial
    benchmark: str
    context: int
    scale_rule: str
    stage: Stage
    budget: FrameBudget
    question_set: str

    @property
    def id(self) -> str:
        return f"{self.trial.name}/{self.benchmark}/{self.context}/{self.scale_rule}"


@dataclass(frozen=True)
class Grid:
    """Everything that a study runs. Data set, frames, question sets and choice stages are of its first setting."""

    dataset: Stage
    frames: Stage
    question_sets: dict[str, str]
    choice: dict[str, ChoiceStages]
    folders: dict[str, NeedleFolder]
    trials: tuple[Trial, ...]
    cells: tuple[Cell, ...]

    @property
    def targets(self) -> list[Stage]:
        """The stages whose artifacts the study needs, trial by trial."""
        return [stage for trial in self.trials for stage in trial.stages()]

    @property
    def fingerprint(self) -> str:
        """The identity of the study's results: of every cell and the stage it comes from."""
        lines = sorted(f"{cell.id} {cell.stage.fingerprint}" for cell in self.cells)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_grid(config: Config) -> Grid:
    """Make every stage of the study. Raises ValueError for a variant, scale or length that cannot be."""
    surveys = read_folders(config)
    grids = [_at_one_setting(config.at(setting), surveys) for setting in config.settings]
    cells = [(cell, setting) for grid, setting in zip(grids, config.settings, strict=True) for cell in grid.cells]
    whole = replace(grids[0], trials=tuple(trial for grid in grids for trial in grid.trials))
    return with_cells(whole, _not_excluded(config.study, cells))


def with_cells(grid: Grid, cells: tuple[Cell, ...]) -> Grid:
    """The part of the grid that these cells rest on."""
    kept = {(cell.trial.name, cell.benchmark, cell.scale_rule) for cell in cells}
    trials = []
    for trial in grid.trials:
        evaluations = {key: stage for key, stage in trial.evaluations.items() if (trial.name, *key) in kept}
        searched = any(rule == SEARCHED for _, rule in evaluations)
        if evaluations:
            trials.append(replace(trial, evaluations=evaluations, search=trial.search if searched else None))
    return replace(grid, trials=tuple(trials), cells=cells)


def _not_excluded(study: StudyConfig, cells: Sequence[tuple[Cell, Setting]]) -> tuple[Cell, ...]:
    """The cells that no entry of study.exclude names. Raises ValueError for one that names none, or a baseline."""
    kept = list(cells)
    for pattern in study.exclude:
        known = [*_coordinates(*cells[0])]
        if unknown := [key for key in pattern if key not in known]:
            raise ValueError(f"study.exclude has {unknown[0]!r}; allowed are {', '.join(known)}")
        here = [pair for pair in kept if not matches(pattern, _coordinates(*pair))]
        if len(here) == len(kept):
            raise ValueError(f"study.exclude has {pattern}, which names no cell that is left; remove or correct it")
        kept = here
    names = {(cell.trial.variant.name, cell.trial.setting, cell.trial.seed) for cell, _ in kept}
    for name, setting, seed in sorted(names):
        if (study.baseline, setting, seed) not in names:
            at = f" at {setting}" if setting else ""
            raise ValueError(f"study.exclude leaves {name} seed {seed}{at} without its baseline {study.baseline}")
    if not kept:
        raise ValueError("study.exclude leaves no cell; remove some of it")
    return tuple(cell for cell, _ in kept)


def _coordinates(cell: Cell, setting: Setting) -> dict[str, Any]:
    return {
        "variant": cell.trial.variant.name,
        "seed": cell.trial.seed,
        "benchmark": cell.benchmark,
        "context": cell.context,
        "scale_rule": cell.scale_rule,
        **setting.values,
    }


def _at_one_setting(config: Config, surveys: Surveys) -> Grid:
    study, cluster = config.study, config.cluster
    budget = training_budget(config)
    _check_films(config)
    placement = PreprocessPlacement(
        cache_dir=str(Path(config.store).resolve() / "frame_cache"),
        num_workers=cluster.decode_workers,
        timeout_s=cluster.decode_timeout_s,
    )
    dataset, frames = training_data(config, placement)
    variants = [(entry, build_variant(entry)) for entry in study.variants]
    for _, variant in variants:
        variant.check_sizes(config.model.head_dim, config.model.num_key_value_heads)
    choice = {name: choice_stages(config, name, found, placement) for name, found in surveys.items()}
    folders = needle_folders(config, placement)
    trials = tuple(
        make_trial(config, entry, variant, seed, dataset, frames, choice, folders)
        for seed in study.seeds
        for entry, variant in variants
    )
    question_sets = {name: question_set(config, name, surveys, folders) for name in config.benchmarks}
    own_budgets = {name: folder.budget for name, folder in folders.items()}
    cells = tuple(
        Cell(
            trial,
            benchmark,
            context,
            rule,
            stage,
            choice[benchmark].budgets[context] if benchmark in choice else own_budgets.get(benchmark, budget),
            question_sets[benchmark],
        )
        for trial in trials
        for (benchmark, rule), stage in trial.evaluations.items()
        for context in contexts_of(config, benchmark)
    )
    return Grid(dataset, frames, question_sets, choice, folders, trials, cells)


def _check_films(config: Config) -> None:
    """Refuse needles without films to put them in, too short ones, and lengths that are no whole number of cells."""
    if not isinstance(config.dataset, DatasetConfig):
        needles = [name for name, found in config.benchmarks.items() if isinstance(found, NeedleBenchmark)]
        if needles:
            raise ValueError(
                f"benchmarks.{needles[0]} puts its needles into drawn films, and dataset is {config.dataset.name}; "
                "leave it out, or train on dataset=needles"
            )
        return
    study, longest, cell = config.study, config.dataset.film_frames, config.model.temporal_patch_size
    lengths = {"study.contexts_frames": study.contexts_frames}
    if SEARCHED in study.scale_rules and isinstance(config.benchmarks[study.search.benchmark], NeedleBenchmark):
        lengths["study.search.contexts"] = study.search.contexts
    for key, wanted in lengths.items():
        if max(wanted) > longest:
            raise ValueError(
                f"{key} has {max(wanted)}, but a film has {longest} frames; lower it or raise dataset.film_frames"
            )
        for frames in wanted:
            if frames < cell or frames % cell:
                raise ValueError(f"{key} has {frames}; give multiples of model.temporal_patch_size {cell}")
