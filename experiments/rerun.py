"""Scoring existing checkpoints on new benchmarks: only evaluations run, nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from experiments.compose import named_benchmarks
from experiments.grid import with_cells
from experiments.study import Study, open_study, refuse_missing, run_study, say
from experiments.trials import Trial


@dataclass(frozen=True)
class Rerun:
    """A study, with `benchmark=NAME` grown by benchmarks, whose selected cells have a checkpoint in the store.

    `benchmarks` are those whose missing cells run; `untrained` are the trials left out.
    """

    study: Study
    benchmarks: tuple[str, ...]
    untrained: tuple[Trial, ...]


def open_rerun(overrides: Sequence[str]) -> Rerun:
    """Compose the grown study and select what can be evaluated; without `benchmark=NAME`, of all its benchmarks.

    A benchmark whose content changed since its cells were made has another fingerprint, and its cells are missing.
    Raises ValueError in one line for a user's mistake and where no trial has a checkpoint; writes nothing.
    """
    study = open_study(overrides, command="rerun")
    benchmarks = named_benchmarks(overrides) or tuple(study.config.benchmarks)
    trained = {trial.name for trial in study.grid.trials if study.store.has(trial.finetune)}
    if not trained:
        raise ValueError(
            f"store {study.config.store} has no checkpoint of study {study.config.study.name!r} with these settings; "
            f"train it first: {study.again('run')}"
        )
    # What other benchmarks have is mirrored with the new cells; what they lack is no business of this command.
    cells = tuple(
        cell
        for cell in study.grid.cells
        if cell.trial.name in trained and (cell.benchmark in benchmarks or study.store.has(cell.stage))
    )
    untrained = tuple(trial for trial in study.grid.trials if trial.name not in trained)
    selected = replace(study, selected=with_cells(study.grid, cells))
    refuse_missing(selected, training=False)
    return Rerun(selected, benchmarks, untrained)


def rerun(work: Rerun, console: Console) -> int:
    """Evaluate the missing cells, report, and return the exit code; trials without a checkpoint are listed."""
    for trial in work.untrained:
        say(console, f"no checkpoint, not evaluated: {trial.name}   (hope run trains it)")
    return run_study(work.study, console)
