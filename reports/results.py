"""One study's records, read from MLflow into tidy tables.

The tables are pandas frames with one row per thing named: a trial, a cell, a question, a point of a training curve, a
point of a scale search. Every row carries the run id it came from.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

CURVES = ("train/loss", "train/accuracy", "train/lr")
CELL_TAGS = (
    *("variant", "layout", "allocation", "scaling", "trial", "benchmark", "context", "scale_rule"),
    *("budget", "question_set", "scorer", "command", "fingerprint", "error"),
)
CELL_METRICS = ("accuracy", "questions", "errors", "unparsed", "duration_s", "cached")
TRIAL_TAGS = ("variant", "layout", "allocation", "scaling", "model", "recipe", "trial", "error")
TRIAL_METRICS = ("duration_s", "cached", *CURVES)
QUESTION_FIELDS = ("id", "video", "kind", "context", "depth", "correct", "error", "scale")


@dataclass(frozen=True)
class StudyResults:
    """Everything a report needs. context columns hold labels as written ("64", "8k"); context_size orders them."""

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
    def benchmarks(self) -> list[str]:
        return list(self.record["benchmarks"])

    @property
    def scale_rules(self) -> list[str]:
        return list(self.record["scale_rules"])

    def variant(self, name: str) -> dict[str, Any]:
        return next(variant for variant in self.record["variants"] if variant["name"] == name)

    def contexts(self, benchmark: str) -> list[str]:
        """The labels of one benchmark's contexts, shortest first."""
        rows = self.cells[self.cells.benchmark == benchmark][["context", "context_size"]].drop_duplicates()
        return list(rows.sort_values("context_size").context)

    def multiple(self, benchmark: str, context: str) -> float:
        """Context as a multiple of the training length."""
        return context_size(context) / self.record["benchmarks"][benchmark]["train_length"]


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
    if not cell_runs:
        raise ValueError(f"study {study!r} has no cells yet: hope run study={study}")
    cells = newest(cell_table(cell_runs), ["trial", "benchmark", "context", "scale_rule"])
    trials = newest(trial_table(trial_runs), ["trial"])
    failed = cells[cells.status != "FINISHED"]
    if len(failed) == len(cells):
        raise ValueError(
            f"study {study!r} has no finished cell; {len(failed)} failed, the first with {failed.error.iloc[0]}: "
            f"see hope status study={study}"
        )
    refuse_mixtures(cells)
    with TemporaryDirectory() as folder:
        files = download(client, study_run, trials, Path(folder))
        questions = question_table(files, trials, cells)
        searches = search_table(files, trials)
        study_files = files[study_run.info.run_id]
        record = json.loads((study_files / "study.json").read_text())
        config = (study_files / "config.yaml").read_text()
    tags = study_run.data.tags
    return StudyResults(
        study=study,
        question=tags["question"],
        baseline=tags["baseline"],
        command=tags["command"],
        expected_cells=int(tags["expected_cells"]),
        run_id=study_run.info.run_id,
        experiment_id=experiment.experiment_id,
        started_ms=study_run.info.start_time,
        tracking_uri=without_password(tracking_uri),
        record=record,
        config=config,
        trials=trials,
        cells=cells,
        questions=questions,
        curves=curve_table(client, trials),
        searches=searches,
    )


def open_tracking(tracking_uri: str) -> MlflowClient:
    """A client for an existing store; MLflow itself would create an empty database at a mistyped path."""
    parsed = urlparse(tracking_uri)
    if parsed.scheme == "sqlite" and not Path(parsed.path[1:]).is_file():
        raise ValueError(f"tracking store {tracking_uri!r} does not exist: run a study first or correct tracking_uri")
    return MlflowClient(tracking_uri)


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


def context_size(label: str) -> float:
    """The size a context label stands for: "64" is 64, "8k" 8000. Labels without a number sort last."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", label)
    return float(found[1]) * (1000 if found[2] else 1) if found else float("inf")


def run_row(run: Run, tags: tuple[str, ...], metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        "run_id": run.info.run_id,
        "parent_id": run.data.tags["mlflow.parentRunId"],
        "name": run.info.run_name,
        "status": run.info.status,
        "started_ms": run.info.start_time,
        "seed": int(run.data.tags["seed"]),
        **{tag: run.data.tags.get(tag) for tag in tags},
        **{metric: run.data.metrics.get(metric, float("nan")) for metric in metrics},
    }


def cell_table(runs: list[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        row = run_row(run, CELL_TAGS, CELL_METRICS)
        row["scale"] = float(run.data.params.get("scale", "nan"))
        row["context_size"] = context_size(row["context"])
        rows.append(row)
    return pd.DataFrame(rows)


def trial_table(runs: list[Run]) -> pd.DataFrame:
    return pd.DataFrame([{**run_row(run, TRIAL_TAGS, TRIAL_METRICS), "params": run.data.params} for run in runs])


def newest(table: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One row per key: the newest finished one, else the newest; in the key's order, so that reports repeat."""
    ranked = table.assign(unfinished=table.status != "FINISHED").sort_values(
        [*key, "unfinished", "started_ms", "run_id"], ascending=[True] * len(key) + [True, False, True]
    )
    return ranked.drop_duplicates(key).drop(columns="unfinished").reset_index(drop=True)


def refuse_mixtures(cells: pd.DataFrame) -> None:
    """One benchmark has one question set and scorer, and each of its contexts one budget, or there is no table."""
    finished = cells[cells.status == "FINISHED"]
    checks = (("question_set", ["benchmark"]), ("scorer", ["benchmark"]), ("budget", ["benchmark", "context"]))
    for field, place in checks:
        for key, group in finished.groupby(place):
            values = group.groupby(group[field].astype(str)).run_id.agg(["size", "first"])
            if len(values) > 1:
                found = "; ".join(
                    f"{value} in {row['size']} cells, e.g. run {row['first']}" for value, row in values.iterrows()
                )
                raise ValueError(
                    f"cells of {' '.join(key)} differ in {field} and do not fit in one table: {found}; "
                    "run the odd ones again or report the studies apart"
                )


def download(client: MlflowClient, study_run: Run, trials: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Fetch every artifact of the study and its trials; return the folder of each run."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    folders = {}
    for run_id in [study_run.info.run_id, *trials.run_id]:
        folders[run_id] = folder / run_id
        folders[run_id].mkdir()
        for artifact in client.list_artifacts(run_id):
            if artifact.path in ("questions", "scale_search.json", "study.json", "config.yaml"):
                client.download_artifacts(run_id, artifact.path, str(folders[run_id]))
    return folders


def question_table(files: dict[str, Path], trials: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The questions of finished cells, from each trial's questions/<benchmark>/<scale_rule>.jsonl."""
    parts = []
    for trial in trials.itertuples():
        for file in sorted((files[trial.run_id] / "questions").glob("*/*.jsonl")):
            with file.open() as lines:
                asked = pd.DataFrame(
                    [[record.get(name) for name in QUESTION_FIELDS] for record in map(json.loads, lines)],
                    columns=list(QUESTION_FIELDS),
                )
            asked["context"] = asked.context.astype(str)
            parts.append(asked.assign(benchmark=file.parent.name, scale_rule=file.stem, trial=trial.trial))
    if not parts:
        raise ValueError("no trial has a question file: the cells were recorded without their questions")
    questions = pd.concat(parts, ignore_index=True)
    finished = cells[cells.status == "FINISHED"]
    key = ["trial", "benchmark", "context", "scale_rule"]
    found = questions.merge(finished[[*key, "variant", "seed", "context_size"]], on=key)
    return found.drop_duplicates([*key, "id"], keep="last").reset_index(drop=True)


def search_table(files: dict[str, Path], trials: pd.DataFrame) -> pd.DataFrame:
    """The points of each trial's scale search; chosen marks the scale that its test questions were run at."""
    rows = []
    for trial in trials.itertuples():
        file = files[trial.run_id] / "scale_search.json"
        if file.exists():
            found = json.loads(file.read_text())
            for point in found["points"]:
                chosen = point["scale"] == found["chosen"]
                rows.append({**point, "chosen": chosen, "objective": found["objective"], "trial": trial.trial})
    columns = ["scale", "accuracy", "questions", "correct", "state", "per_kind", "chosen", "objective", "trial"]
    points = pd.DataFrame(rows, columns=columns)
    return points.merge(trials[["trial", "variant", "seed", "run_id"]], on="trial")


def curve_table(client: MlflowClient, trials: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (trial.trial, trial.variant, trial.seed, key, metric.step, metric.value)
        for trial in trials.itertuples()
        for key in CURVES
        for metric in client.get_metric_history(trial.run_id, key)
    ]
    curves = pd.DataFrame(rows, columns=["trial", "variant", "seed", "metric", "step", "value"])
    return curves.sort_values(["metric", "trial", "step"]).reset_index(drop=True)
