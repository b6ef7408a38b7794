"""A study's grid: its trials, their stages, and the cells that the report compares."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.asking import (
    ChoiceStages,
    NeedleFolder,
    Surveys,
    check_model,
    choice_stages,
    contexts_of,
    needle_folders,
    question_set,
    read_folders,
)
from experiments.axes import matches
from experiments.config import EQUAL, PUBLISHED, SEARCHED, Config, Setting, StudyConfig, VariantEntry
from experiments.scale_search import SearchIdentity, SearchPlacement, search_stage
from experiments.training import num_samples, training_budget, training_data, training_placement
from hope_core import Variant, get_variant, make_variant
from pipelines.asked import Asked
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.folder import SOURCE
from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.engine import Stage
from pipelines.evaluate import EvaluatePlacement, evaluate_stage
from pipelines.evaluate_choice import evaluate_choice_stage
from pipelines.features import FILM_PREFIX, NEEDLE_PREFIX, features_stage, frozen_features_stage
from pipelines.finetune import finetune_stage
from pipelines.preprocess import PreprocessPlacement
from pipelines.pretrained import PretrainedModel
from pipelines.video.budget import FrameBudget


@dataclass(frozen=True)
class Trial:
    """One fine-tuning and what follows from it; `evaluations` by (benchmark, scale rule).

    `config` is the study's at this trial's setting of the further axes.
    """

    name: str
    config: Config
    variant: Variant
    seed: int
    published_scale: float | None
    finetune: Stage
    search: Stage | None
    evaluations: dict[tuple[str, str], Stage]

    @property
    def setting(self) -> str:
        """The values of the study's further axes, "" where it has none."""
        return self.config.setting

    @property
    def label(self) -> str:
        """What tables call this trial and those of other seeds."""
        return label(self.variant.name, self.setting)

    def stages(self) -> Iterator[Stage]:
        yield self.finetune
        if self.search:
            yield self.search
        yield from self.evaluations.values()


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


def build_variant(entry: VariantEntry) -> Variant:
    """A registered variant, or one of the given parts. Raises ValueError in one line."""
    if entry.positions is None or entry.frequencies is None:
        return get_variant(entry.name)
    return make_variant(
        entry.name, positions=entry.positions, frequencies=entry.frequencies, scaling=entry.scaling or "none"
    )


def label(variant: str, setting: str) -> str:
    return f"{variant} · {setting}" if setting else variant


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
    check_model(config)
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
        _trial(config, entry, variant, seed, dataset, frames, choice, folders)
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
    """Refuse needles without films to put them in, or too short ones."""
    if not isinstance(config.dataset, DatasetConfig):
        needles = [name for name, found in config.benchmarks.items() if isinstance(found, NeedleBenchmark)]
        if needles:
            raise ValueError(
                f"benchmarks.{needles[0]} puts its needles into drawn films, and dataset is {config.dataset.name}; "
                "leave it out, or train on dataset=needles"
            )
        return
    wanted, longest = max(config.study.contexts_frames), config.dataset.film_frames
    if wanted > longest:
        raise ValueError(
            f"study.contexts_frames has {wanted}, but a film has {longest} frames; "
            f"lower it or raise dataset.film_frames"
        )


def lend(stage: Stage, num_gpus: int) -> Stage:
    """The stage, asking for so many GPUs too; no part of its identity."""
    return replace(stage, resources=replace(stage.resources, num_gpus=num_gpus))


def _trial(
    config: Config,
    entry: VariantEntry,
    variant: Variant,
    seed: int,
    dataset: Stage,
    frames: Stage,
    choice: Mapping[str, ChoiceStages],
    folders: Mapping[str, NeedleFolder],
) -> Trial:
    study = config.study
    name = f"{variant.name}[{config.setting}]-s{seed}" if config.setting else f"{variant.name}-s{seed}"
    # One process per variant and seed: nothing that a library keeps in memory can pass from one variant to another.
    finetune = finetune_stage(
        variant,
        config.model,
        config.recipe,
        seed,
        dataset=dataset,
        frames=frames,
        group=name,
        placement=training_placement(config),
        num_samples=num_samples(config),
    )
    num_gpus = config.cluster.training.gpus_per_worker  # who trains on GPUs answers on one

    def encoded(shown: Stage, *media: str) -> Stage:
        if isinstance(config.model, PretrainedModel) and not config.recipe.train_vision:
            return lend(frozen_features_stage(config.model, config.recipe, shown, media=media), num_gpus)
        return lend(features_stage(finetune, shown, media=media, group=name), num_gpus)

    drawn = encoded(frames, FILM_PREFIX, NEEDLE_PREFIX)
    made = {"checkpoint": finetune, "features": drawn, "dataset": dataset}
    asked: dict[str, Asked] = {}
    made_of: dict[str, dict[str, Stage]] = {}
    for key, found in config.benchmarks.items():
        if isinstance(found, NeedleBenchmark):
            asked[key], made_of[key] = found, made
        elif key in folders:
            shown = encoded(folders[key].frames, f"{SOURCE}/")
            asked[key], made_of[key] = folders[key].asked, {"checkpoint": finetune, "features": shown}
    search = None
    if variant.scalable and SEARCHED in study.scale_rules:
        wanted = study.search
        benchmark = config.benchmarks[wanted.benchmark]
        if isinstance(benchmark, ChoiceBenchmark):
            searched: Asked | ChoiceBenchmark = benchmark.identity
            rests_on = choice[wanted.benchmark].inputs(finetune, wanted.contexts)
        else:
            searched, rests_on = asked[wanted.benchmark], made_of[wanted.benchmark]
        identity = SearchIdentity(searched, wanted.contexts, wanted.scales, wanted.seed, wanted.batch, wanted.prune_p)
        placement = SearchPlacement(config.cluster.search_workers, config.cluster.search_storage, num_gpus)
        search = search_stage(identity, placement, rests_on, group=name)
    published = (entry.published_scale or variant.inference_scale) if variant.scalable else None
    if variant.scalable and published is None and PUBLISHED in study.scale_rules:
        raise ValueError(f"variant {variant.name} has no published scale; add published_scale to it in study.variants")
    evaluations = {}
    for benchmark_name, benchmark in config.benchmarks.items():
        for rule in study.scale_rules:
            scale = {PUBLISHED: published, EQUAL: study.equal_scale, SEARCHED: None}[rule] if variant.scalable else None
            chosen = search if rule == SEARCHED else None
            if isinstance(benchmark, ChoiceBenchmark):
                rests_on = choice[benchmark_name].inputs(finetune, benchmark.contexts_tokens)
                evaluations[benchmark_name, rule] = evaluate_choice_stage(
                    benchmark, scale, rests_on, chosen_scale=chosen, group=name
                )
                continue
            evaluations[benchmark_name, rule] = evaluate_stage(
                asked[benchmark_name],
                contexts_of(config, benchmark_name),
                scale,
                placement=EvaluatePlacement(chunk_tokens=config.cluster.chunk_tokens),
                chosen_scale=chosen,
                group=name,
                **made_of[benchmark_name],
            )
    evaluations = {key: lend(stage, num_gpus) for key, stage in evaluations.items()}
    return Trial(name, config, variant, seed, published, finetune, search, evaluations)
