"""MLflow's runs and their files as tables: one row per trial, cell, question, point of a curve or of a search."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

CURVES = ("train/loss", "train/held_out_loss", "train/accuracy", "train/lr")
CELL_TAGS = (
    *("variant", "setting", "layout", "allocation", "scaling", "trial", "benchmark", "context", "scale_rule"),
    *("budget", "question_set", "scorer", "command", "fingerprint", "error"),
)
CELL_METRICS = ("accuracy", "questions", "errors", "unparsed", "duration_s", "gpu_hours", "cached")
TRIAL_TAGS = ("variant", "setting", "layout", "allocation", "scaling", "model", "recipe", "trial", "error")
SEARCH_COSTS = ("scale_search/duration_s", "scale_search/gpu_hours")
TRIAL_METRICS = ("duration_s", "gpu_hours", "cached", *SEARCH_COSTS, *CURVES)
QUESTION_FIELDS = ("id", "video", "kind", "context", "depth", "correct", "error", "scale")
SEARCH_FIELDS = (
    *("scale", "accuracy", "low", "high", "questions", "correct", "state", "per_kind"),
    *("chosen", "objective", "trial"),
)


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
    """One benchmark has one question set and scorer, and each of its contexts one budget, or there is no table.

    Axes may change them: every setting has tables of its own.
    """
    finished = cells[cells.status == "FINISHED"]
    checks: tuple[tuple[str, list[str]], ...] = (("question_set", []), ("scorer", []), ("budget", ["context"]))
    for field, place in checks:
        for key, group in finished.groupby(["setting", "benchmark", *place]):
            values = group.groupby(group[field].astype(str)).run_id.agg(["size", "first"])
            if len(values) > 1:
                found = "; ".join(
                    f"{value} in {row['size']} cells, e.g. run {row['first']}" for value, row in values.iterrows()
                )
                raise ValueError(
                    f"cells of {' '.join(key).strip()} differ in {field} and do not fit in one table: {found}; "
                    "run the odd ones again or report the studies apart"
                )


def question_table(files: dict[str, Path], trials: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The questions of finished cells, from each trial's questions/<benchmark>/<scale_rule>.jsonl."""
    parts = []
    for trial in trials.itertuples():
        for file in sorted((files[trial.run_id] / "questions").glob("*/*.jsonl")):
            lines = file.read_text(encoding="utf-8").strip().split("\n")  # splitlines would also cut within a text
            records = json.loads(f"[{','.join(lines)}]")
            asked = pd.DataFrame(records, columns=list(QUESTION_FIELDS))
            asked["context"] = asked.context.astype(str)
            parts.append(asked.assign(benchmark=file.parent.name, scale_rule=file.stem, trial=trial.trial))
    if not parts:
        raise ValueError("no trial has a question file: the cells were recorded without their questions")
    questions = pd.concat(parts, ignore_index=True)
    finished = cells[cells.status == "FINISHED"]
    key = ["trial", "benchmark", "context", "scale_rule"]
    found = questions.merge(finished[[*key, "variant", "setting", "seed", "context_size"]], on=key)
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
    points = pd.DataFrame(rows, columns=list(SEARCH_FIELDS))
    return points.merge(trials[["trial", "variant", "setting", "seed", "run_id"]], on="trial")


def curve_table(client: MlflowClient, trials: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (trial.trial, trial.variant, trial.setting, trial.seed, key, metric.step, metric.value)
        for trial in trials.itertuples()
        for key in CURVES
        for metric in client.get_metric_history(trial.run_id, key)
    ]
    curves = pd.DataFrame(rows, columns=["trial", "variant", "setting", "seed", "metric", "step", "value"])
    return curves.sort_values(["metric", "trial", "step"]).reset_index(drop=True)


def name_variants(record: dict[str, Any], tables: list[pd.DataFrame]) -> None:
    """Call each of the record's variants by its label, which with axes is "variant · setting", and so in the tables."""
    for entry in record["variants"]:
        entry["name"] = entry["label"]
    for table in tables:
        pairs = zip(table.variant, table.setting, strict=True)
        table["variant"] = [" · ".join(filter(None, pair)) for pair in pairs]
