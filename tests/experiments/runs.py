"""What a study left in MLflow."""

import json
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import Store, walk


def runs_of(overrides: Sequence[str]) -> list[Run]:
    config, _ = load_config(overrides)
    client = MlflowClient(config.tracking)
    experiment = client.get_experiment_by_name(config.study.name)
    assert experiment
    return list(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000))


def check_tree(overrides: Sequence[str]) -> None:
    """One study run, one run per trial below it, one per cell below its trial, each once and finished."""
    grid = build_grid(load_config(overrides)[0])
    runs = runs_of(overrides)
    by_kind = {kind: [run for run in runs if run.data.tags["kind"] == kind] for kind in ("study", "trial", "cell")}
    (study,) = by_kind["study"]
    trials = {run.data.tags["key"]: run.info.run_id for run in by_kind["trial"]}
    assert sorted(run.data.tags["key"] for run in by_kind["trial"]) == sorted(trial.name for trial in grid.trials)
    assert sorted(run.data.tags["key"] for run in by_kind["cell"]) == sorted(cell.id for cell in grid.cells)
    assert {run.data.tags["mlflow.parentRunId"] for run in by_kind["trial"]} == {study.info.run_id}
    assert all(run.data.tags["mlflow.parentRunId"] == trials[run.data.tags["trial"]] for run in by_kind["cell"])
    assert {run.info.status for run in runs} == {"FINISHED"}


def numbers(overrides: Sequence[str]) -> dict[str, dict[str, object]]:
    """What each question was answered, by cell: all that a report's accuracies rest on."""
    config, _ = load_config(overrides)
    root = Path(config.store) / "artifacts" / "evaluate"
    found = {}
    for cell in build_grid(config).cells:
        lines = map(json.loads, (root / cell.stage.fingerprint / "questions.jsonl").read_text().splitlines())
        found[cell.id] = {line["id"]: line["prediction"] for line in lines if line["context"] == cell.context}
    return found


def published(overrides: Sequence[str]) -> set[str]:
    """Labels of the stages whose artifact is in the store."""
    config, _ = load_config(overrides)
    store = Store(config.store)
    return {stage.label for stage in walk(build_grid(config).targets) if store.has(stage)}


def attempts(overrides: Sequence[str]) -> dict[str, int]:
    """How often each stage of the study was begun, by label, from the logs of those that were."""
    config, _ = load_config(overrides)
    store = Store(config.store)
    logs = {stage.label: store.log_path(stage.name, stage.fingerprint) for stage in walk(build_grid(config).targets)}
    return {
        label: sum(line.startswith("--- ") for line in log.read_text().splitlines())
        for label, log in logs.items()
        if log.exists()
    }
