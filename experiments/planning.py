"""What a study would do, before it does anything: its cells and their state, what each stage would cost, and the
smallest difference that it could tell.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from itertools import product

from rich.console import Console

from experiments.asking import contexts_of, train_length
from experiments.axes import expand_parts
from experiments.config import PUBLISHED, Config
from experiments.grid import Cell, Grid
from experiments.progress import counts, duration
from experiments.study import NOTHING_TO_DO, Study, say
from experiments.training import FLOPS_BASIS, cell_side, reckoned_gpu_hours
from experiments.trials import Trial
from pipelines.benchmarks.needles import NeedleBenchmark
from pipelines.data_stages import DatasetConfig
from pipelines.engine import PlannedStage, State, plan
from pipelines.models import RandomModel
from reports.statistics import minimum_detectable_difference

# FLOP/s that one CPU core is reckoned to reach with small models, until a like stage has run in the store.
FLOPS_PER_CORE = 2e10
RECORDED = "recorded durations of like stages"
RECKONED = f"recipe and lengths at {FLOPS_PER_CORE:g} FLOP/s a core"


@dataclass(frozen=True)
class StageCost:
    """The stages of one name. `seconds` of work for those to run, None if unknown; `basis` says what that rests on."""

    name: str
    done: int
    to_run: int
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Resolution:
    """The smallest difference to the baseline that one cell's comparison would call real, with the power of 80 %.

    Infinite with one seed; counted before any data, for the disagreement and variances that
    `minimum_detectable_difference` assumes.
    """

    benchmark: str
    num_questions: int
    num_videos: int
    num_seeds: int
    difference: float


@dataclass(frozen=True)
class StudyPlan:
    """Every stage with its state, the costs by stage name, the cells' states by id, and what they could tell.

    `gpu_hours` of each training to run whose size is declared.
    """

    stages: list[PlannedStage]
    costs: list[StageCost]
    cells: dict[str, State]
    resolutions: list[Resolution]
    gpu_hours: list[float]


def plan_study(study: Study) -> StudyPlan:
    """Look everything up and write nothing."""
    planned = plan(study.store, study.grid.targets)
    states = {item.fingerprint: item.state for item in planned}
    of_trial = {stage.fingerprint: trial for trial in reversed(study.grid.trials) for stage in trial.stages()}
    by_name: dict[str, list[PlannedStage]] = {}
    for item in planned:
        by_name.setdefault(item.stage.name, []).append(item)
    missing = [item for item in by_name.get("finetune", []) if item.state != State.DONE]
    hours = [reckoned_gpu_hours(of_trial[item.fingerprint].config) for item in missing]
    return StudyPlan(
        stages=planned,
        costs=[_cost(name, items, of_trial) for name, items in by_name.items()],
        cells={cell.id: states[cell.stage.fingerprint] for cell in study.grid.cells},
        resolutions=_resolutions(study),
        gpu_hours=[found for found in hours if found is not None],
    )


def _cost(name: str, items: list[PlannedStage], of_trial: dict[str, Trial]) -> StageCost:
    missing = [item for item in items if item.state != State.DONE]
    recorded = [item.expected_s for item in missing if item.expected_s is not None]
    reckoned = [
        seconds
        for item in missing
        if (trial := of_trial.get(item.fingerprint)) and (seconds := reckoned_s(trial.config, item)) is not None
    ]
    if missing and len(recorded) == len(missing):
        return StageCost(name, len(items) - len(missing), len(missing), sum(recorded), RECORDED)
    if missing and len(reckoned) == len(missing):
        return StageCost(name, len(items) - len(missing), len(missing), sum(reckoned), RECKONED)
    return StageCost(name, len(items) - len(missing), len(missing), None if missing else 0.0, "")


def reckoned_s(config: Config, item: PlannedStage) -> float | None:
    """Seconds of a stage on one core, from its recipe or lengths: 6 FLOPs a parameter and token to train, 2 to read.

    None for what is not reckoned: drawing and decoding, and models that are not trained on a CPU.
    """
    model, data, stage = config.model, config.dataset, item.stage
    if not isinstance(model, RandomModel) or not isinstance(data, DatasetConfig):
        return None
    per_cell = cell_side(config) ** 2
    if stage.name == "finetune":
        rows = (config.recipe.steps or 0) * config.recipe.batch_size
        return 6 * model.num_parameters * rows * data.train_cells_max * per_cell / FLOPS_PER_CORE
    if stage.name in ("evaluate", "scale_search"):
        return 2 * model.num_parameters * stage.work_units * per_cell / model.temporal_patch_size / FLOPS_PER_CORE
    return None


def _resolutions(study: Study) -> list[Resolution]:
    """One line for each benchmark of drawn films, for whose questions the config is enough."""
    config, grid, data = study.config, study.grid, study.config.dataset
    variants = len({trial.variant.name for trial in grid.trials})
    seeds = len({trial.seed for trial in grid.trials})
    compared = max(1, num_comparisons(config, grid))
    found = []
    for name, benchmark in config.benchmarks.items():
        if not isinstance(benchmark, NeedleBenchmark) or not isinstance(data, DatasetConfig) or variants < 2:
            continue
        videos = min(data.num_films - benchmark.num_validation_films, benchmark.num_videos_per_context)
        questions = benchmark.num_videos_per_context * len(benchmark.question_kinds)
        smallest = minimum_detectable_difference(
            questions, videos, seeds, num_variants=variants, num_comparisons=compared
        )
        found.append(Resolution(name, questions, videos, seeds, smallest))
    return found


def num_comparisons(config: Config, grid: Grid) -> int:
    """The size of the family that the report's correction will run over, once every cell is done.

    As reports.verdicts.judge counts, which reads answers: a variant with its baseline in every column, the joined one
    too, where they share a seed; but once where neither has a scale and both bring their published answers to a rule.
    """
    rules: dict[tuple[str, str, int], set[str]] = {}
    places: dict[tuple[str, str], list[Cell]] = {}
    for cell in grid.cells:
        rules.setdefault((cell.trial.name, cell.benchmark, cell.context), set()).add(cell.scale_rule)
        places.setdefault((cell.benchmark, cell.trial.setting), []).append(cell)
    found = 0
    for (benchmark, _), cells in places.items():
        trials = {cell.trial.name: cell.trial for cell in cells}.values()
        contexts = {cell.context for cell in cells}
        joined = {context for context in contexts if context > train_length(config, benchmark)} or contexts
        for rule, column in product({cell.scale_rule for cell in cells}, [*({one} for one in contexts), joined]):
            brought: dict[str, dict[int, set[str]]] = {}  # variant -> seed -> rules whose answers it brings
            for trial in trials:
                there = [rules.get((trial.name, benchmark, context), set()) for context in column]
                from_rules = {PUBLISHED if PUBLISHED in ran and not trial.scalable else rule for ran in there}
                if all(from_rules & ran for ran in there):
                    brought.setdefault(trial.variant.name, {})[trial.seed] = from_rules
            baseline = brought.pop(config.study.baseline, {})
            for seeds in brought.values():
                bring = set().union(*baseline.values(), *seeds.values())
                repeats = rule != PUBLISHED and bring == {PUBLISHED}
                found += bool(baseline.keys() & seeds.keys()) and not repeats
    return found


def print_plan(study: Study, console: Console, *, cells: bool = False) -> None:
    """The cells, what is cached, what the rest would cost, and what the grid can tell; `cells` lists every cell."""
    found, config = plan_study(study), study.config
    say(console, f"study {config.study.name}: {config.study.question}")
    lengths = sum(len(contexts_of(config, name)) for name in config.benchmarks)
    less = ", less those excluded" if config.study.exclude else ""
    say(
        console,
        f"{len(study.grid.cells)} cells = {len(study.grid.trials)} trials x {lengths} contexts of "
        f"{len(config.benchmarks)} benchmarks x {len(config.study.scale_rules)} scale rules{less}",
    )
    for impossible in expand_parts(config.study.parts)[1]:
        say(console, f"  left out: {impossible}")
    if cells:
        for cell, state in found.cells.items():
            say(console, f"  {state:<8} {cell}")
    for cost in found.costs:
        work = "" if not cost.to_run else ", cost unknown"
        if cost.seconds and cost.to_run:
            work = f", about {duration(cost.seconds)} of work (from {cost.basis})"
        say(console, f"  {cost.name:<13} {cost.done} done, {cost.to_run} to run{work}")
    if found.gpu_hours:
        hours, trainings = sum(found.gpu_hours), len(found.gpu_hours)
        say(console, f"about {hours:,.0f} GPU hours for {trainings} trainings, {FLOPS_BASIS}")
    _print_total(study, found, console)
    for line in found.resolutions:
        say(console, _can_tell(line))
    failed = counts(found.stages)[State.FAILED]
    if failed:
        say(console, f"{failed} failed before and would run again: {study.again('status')}")


def _print_total(study: Study, found: StudyPlan, console: Console) -> None:
    if all(not cost.to_run for cost in found.costs):
        say(console, NOTHING_TO_DO)
        return
    slots = study.config.cluster.num_cpus or os.cpu_count() or 1
    known = sum(cost.seconds for cost in found.costs if cost.seconds is not None)
    unknown = [cost.name for cost in found.costs if cost.to_run and cost.seconds is None]
    without = f", without {', '.join(unknown)}" if unknown else ""
    if known:
        say(console, f"about {duration(known / slots)} on {slots} CPUs{without}")
    else:
        say(console, "no like stage has run in this store yet: see the cost in the head of the study's file")


def _can_tell(line: Resolution) -> str:
    asked = f"{line.num_questions} questions of {line.num_videos} videos in each cell, {line.num_seeds} seeds"
    if math.isinf(line.difference):
        return f"{line.benchmark}: one seed tells nothing apart; study.seeds of two or more would ({asked})"
    if line.difference >= 1:
        return f"{line.benchmark}: cannot resolve any difference; add to study.seeds, or variants ({asked})"
    return f"{line.benchmark}: cannot resolve less than {100 * line.difference:.1f} points ({asked}; power 80 %)"


def plan_json(study: Study) -> str:
    """The plan as one JSON object; an unknown cost is null, and so is what one seed could tell."""
    found = plan_study(study)
    resolutions = [
        asdict(line) | {"difference": None if math.isinf(line.difference) else line.difference}
        for line in found.resolutions
    ]
    whole = {
        "study": study.config.study.name,
        "grid": study.grid.fingerprint,
        "cells": [
            {"id": cell.id, "state": found.cells[cell.id], "stage": cell.stage.fingerprint} for cell in study.grid.cells
        ],
        "stages": [asdict(cost) for cost in found.costs],
        "gpu_hours": sum(found.gpu_hours) if found.gpu_hours else None,
        "resolutions": resolutions,
    }
    return json.dumps(whole, indent=1)
