"""The artifact study.json of a study run: what a report needs to know of a study besides its runs."""

from dataclasses import asdict
from typing import Any

from experiments.asking import contexts_of, train_length
from experiments.config import Benchmark, Config
from experiments.grid import Grid
from experiments.preference import preference_curve
from experiments.training import about_data
from experiments.trials import Trial, label
from pipelines.benchmarks.choice import ChoiceBenchmark
from pipelines.benchmarks.needles import NeedleBenchmark


def study_record(config: Config, grid: Grid) -> dict[str, Any]:
    """What a report needs to know of a study besides its runs; not of a benchmark whose cells are all excluded."""
    study = config.study
    budgets = {cell.benchmark: cell.budget for cell in reversed(grid.cells)}
    first = {trial.label: trial for trial in reversed(grid.trials)}
    return {
        "name": study.name,
        "question": study.question,
        "baseline": study.baseline,
        "description": study.description,
        "variants": [_variant_record(config, trial) for trial in reversed(first.values())],
        "seeds": list(study.seeds),
        "benchmarks": {
            name: {
                "title": benchmark.title,
                "context_unit": benchmark.context_unit,
                "train_length": train_length(config, name),
                "contexts": list(contexts_of(config, name)),
                "scorer": benchmark.scorer,
                "budget": asdict(budgets[name]),
                "question_set": grid.question_sets[name],
                **_asked_of(grid, name, benchmark),
                "settings": asdict(benchmark) | ({} if isinstance(benchmark, NeedleBenchmark) else {"root": ""}),
            }
            for name, benchmark in config.benchmarks.items()
            if name in budgets
        },
        "scale_rules": list(study.scale_rules),
        "equal_scale": study.equal_scale,
        "data": about_data(config),
    }


def _variant_record(config: Config, trial: Trial) -> dict[str, Any]:
    """A variant at one setting; `baseline` is the label of the variant that it is compared to, at the same setting."""
    variant, model = trial.variant, trial.config.model
    return {
        **variant.to_dict(),
        "label": trial.label,
        "variant": variant.name,
        "setting": trial.setting,
        "baseline": label(config.study.baseline, trial.setting),
        "positions": variant.positions.kind,
        "frequencies": variant.frequencies.kind,
        "scaling": variant.scaling.kind,
        "published_scale": trial.published_scale,
        "scalable": trial.scalable,
        "preference": preference_curve(trial.config, trial),
        "slot_axes": variant.slot_axes(model.head_dim, model.num_key_value_heads).tolist(),
    }


def _asked_of(grid: Grid, name: str, benchmark: Benchmark) -> dict[str, Any]:
    """The accuracy of guessing, and what kinds of questions there are: found in the folder, if it lies in one."""
    if isinstance(benchmark, ChoiceBenchmark):
        found = grid.choice[name].survey
        return {"chance": found.chance, "question_kinds": list(found.kinds)}
    return {"chance": benchmark.chance, "question_kinds": list(benchmark.question_kinds)}
