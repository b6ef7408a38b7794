"""One study's records, read from MLflow into tidy tables.

The tables are pandas frames with one row per thing named: a trial, a cell, a question, a point of a training curve, a
point of a scale search. Every row carries the run id it came from.
"""

import gc
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from reports.records import (
    cell_table,
    context_size,
    curve_table,
    name_variants,
    newest,
    question_table,
    refuse_mixtures,
    search_table,
    trial_table,
)


@dataclass(frozen=True)
class StudyResults:
    """Everything a report needs. context columns hold labels as written ("64", "8k"); context_size orders them.

    variant columns hold names of `record["variants"]`: the variant's own, or "variant · setting" in a study with axes
    (other recipes, models, data), where every setting has its baseline and its tables.
    """

    study: str
    question: str
    baseline: str
    command: str
    expected_cells: int
    run_id: str
    experiment_id: str
    started_ms: int
    tracking_uri: str
    record: dict[str, Any]
    config: str
    quarantine: "Quarantine | None"
    trials: pd.DataFrame
    cells: pd.DataFrame
    questions: pd.DataFrame
    curves: pd.DataFrame
    searches: pd.DataFrame

    @property
    def variants(self) -> list[str]:
        """Names in the study's order."""
        return [variant["name"] for variant in self.record["variants"]]

    @property
    def settings(self) -> list[str]:
        """Combinations of the study's axes, in its order; [""] where it has none."""
        return list(dict.fromkeys(variant["setting"] for variant in self.record["variants"]))

    @property
    def places(self) -> list[tuple[str, str]]:
        """(benchmark, setting): what has tables of its own."""
        return [(benchmark, setting) for benchmark in self.benchmarks for setting in self.settings]

    @property
    def benchmarks(self) -> list[str]:
        return list(self.record["benchmarks"])

    @property
    def scale_rules(self) -> list[str]:
        """The study's scale rules, less those whose every cell it excludes."""
        there = set(self.cells.scale_rule)
        return [rule for rule in self.record["scale_rules"] if rule in there]

    def variant(self, name: str) -> dict[str, Any]:
        return next(variant for variant in self.record["variants"] if variant["name"] == name)

    def baseline_of(self, name: str) -> str:
        """The variant that this one is compared with: the baseline at the same setting."""
        return str(self.variant(name)["baseline"])

    def is_baseline(self, name: str) -> bool:
        return self.baseline_of(name) == name

    def contexts(self, benchmark: str, setting: str | None = None) -> list[str]:
        """The labels of one benchmark's contexts, shortest first; at one setting, or (None) at any."""
        cells = self.cells[self.cells.benchmark == benchmark]
        cells = cells if setting is None else cells[cells.setting == setting]
        rows = cells[["context", "context_size"]].drop_duplicates()
        return list(rows.sort_values("context_size").context)

    def multiple(self, benchmark: str, context: str) -> float:
        """Context as a multiple of the training length; NaN where the benchmark's unit has none."""
        return context_size(context) / (self.record["benchmarks"][benchmark]["train_length"] or nan)


@dataclass(frozen=True)
class Quarantine:
    """Records of the data that could not be used: how many of how many, and each with its reason."""

    quarantined: int
    records: int
    rows: list[dict[str, Any]]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: thousands of runs are millions of objects that stay, walked again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def load_study(tracking_uri: str, study: str, *, run_id: str | None = None) -> StudyResults:
    """Read a study's newest run, or the one given, with its trials and cells.

    Of two runs of one cell the newest finished one counts. Raises ValueError in one line for a store or study that is
    not there, a study without cells, and cells whose budgets, question sets or scorers do not fit in one table.
    """
    client = open_tracking(tracking_uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        known = sorted(found.name for found in client.search_experiments() if found.name != "Default")
        raise ValueError(f"study {study!r} is not in {without_password(tracking_uri)}: it holds {known}; run it first")
    study_run = find_study_run(client, experiment.experiment_id, study, run_id)
    trial_runs = children(client, experiment.experiment_id, "trial", {study_run.info.run_id})
    cell_runs = children(client, experiment.experiment_id, "cell", {run.info.run_id for run in trial_runs})
    command = study_run.data.tags["command"]
    status = shlex.join(["hope", "status", *shlex.split(command)[2:]])
    if not cell_runs:
        errors = [run.data.tags["error"] for run in trial_runs if "error" in run.data.tags]
        why = (
            f"{len(errors)} of {len(trial_runs)} trainings failed, one with {errors[0]}"
            if errors
            else "none was evaluated"
        )
        raise ValueError(f"study {study!r} has no cell to report; {why}: see {status}")
    cells = newest(cell_table(cell_runs), ["trial", "benchmark", "context", "scale_rule"])
    trials = newest(trial_table(trial_runs), ["trial"])
    failed = cells[cells.status != "FINISHED"]
    if len(failed) == len(cells):
        raise ValueError(
            f"study {study!r} has no finished cell; {len(failed)} failed, the first with {failed.error.iloc[0]}: "
            f"see {status}"
        )
    with TemporaryDirectory() as folder:
        files = download(client, study_run, trials, Path(folder))
        study_files = files[study_run.info.run_id]
        record = json.loads((study_files / "study.json").read_text())
        name_variants(record, [trials, cells])
        refuse_mixtures(cells)
        questions = question_table(files, trials, cells)
        searches = search_table(files, trials)
        quarantine = read_quarantine(study_run, study_files)
        config = (study_files / "config.yaml").read_text()
    tags = study_run.data.tags
    return StudyResults(
        study=study,
        question=tags["question"],
        baseline=tags["baseline"],
        command=command,
        expected_cells=int(tags["expected_cells"]),
        run_id=study_run.info.run_id,
        experiment_id=experiment.experiment_id,
        started_ms=study_run.info.start_time,
        tracking_uri=without_password(tracking_uri),
        record=record,
        config=config,
        quarantine=quarantine,
        trials=trials,
        cells=cells,
        questions=questions,
        curves=curve_table(client, trials),
        searches=searches,
    )


def earlier_study(tracking_uri: str, results: StudyResults) -> StudyResults | None:
    """The same study as it was last time: its newest older run with a finished cell, or None.

    A study run belongs to one grid of cells, so that running a study again without a change has no earlier one of its
    own; a new benchmark, changed content or other settings make a new study run, and the former is then its past.
    """
    client = open_tracking(tracking_uri)
    for run in search(client, results.experiment_id, "tags.kind = 'study'"):
        if run.info.start_time >= results.started_ms or run.data.tags["study"] != results.study:
            continue
        trials = {trial.info.run_id for trial in children(client, results.experiment_id, "trial", {run.info.run_id})}
        cells = children(client, results.experiment_id, "cell", trials)
        if any(cell.info.status == "FINISHED" for cell in cells):
            return load_study(tracking_uri, results.study, run_id=run.info.run_id)
    return None


def read_quarantine(study_run: Run, files: Path) -> Quarantine | None:
    """What the study run says of unusable data; None where it says nothing."""
    metrics = study_run.data.metrics
    if "data/quarantined" not in metrics:
        return None
    listed = files / "data" / "quarantine.json"
    rows = json.loads(listed.read_text()) if listed.exists() else []
    return Quarantine(int(metrics["data/quarantined"]), int(metrics.get("data/records", 0)), rows)


def open_tracking(tracking_uri: str) -> MlflowClient:
    """A client for an existing store; MLflow itself would create an empty database at a mistyped path."""
    parsed = urlparse(tracking_uri)
    if parsed.scheme == "sqlite" and not Path(parsed.path[1:]).is_file():
        raise ValueError(f"tracking store {tracking_uri!r} does not exist: run a study first or correct tracking_uri")
    return MlflowClient(tracking_uri)


def when(results: StudyResults) -> str:
    """When the study was started, from its record, in UTC."""
    return datetime.fromtimestamp(results.started_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def without_password(uri: str) -> str:
    """The address without the user and password that it may carry: reports and messages are passed on."""
    return re.sub(r"//[^/@]*@", "//", uri)


def search(client: MlflowClient, experiment_id: str, filter_string: str) -> Iterator[Run]:
    """All runs that match, newest first, fetched in pages."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], filter_string, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def find_study_run(client: MlflowClient, experiment_id: str, study: str, run_id: str | None) -> Run:
    runs = [run for run in search(client, experiment_id, "tags.kind = 'study'") if run.data.tags["study"] == study]
    if run_id is not None:
        runs = [run for run in runs if run.info.run_id == run_id]
    if not runs:
        raise ValueError(f"study {study!r} has no study run{f' {run_id}' if run_id else ''}: hope run study={study}")
    return runs[0]


def children(client: MlflowClient, experiment_id: str, kind: str, parents: set[str]) -> list[Run]:
    runs = search(client, experiment_id, f"tags.kind = '{kind}'")
    return [run for run in runs if run.data.tags.get("mlflow.parentRunId") in parents]


def download(client: MlflowClient, study_run: Run, trials: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Fetch every artifact of the study and its trials; return the folder of each run."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    folders = {}
    for run_id in [study_run.info.run_id, *trials.run_id]:
        folders[run_id] = folder / run_id
        folders[run_id].mkdir()
        for artifact in client.list_artifacts(run_id):
            if artifact.path in ("questions", "scale_search.json", "study.json", "config.yaml", "data"):
                client.download_artifacts(run_id, artifact.path, str(folders[run_id]))
    return folders
