"""MLflow as a mirror of the store: study run > trial runs > cell runs, each written once, whatever was killed when.

Only the launching process writes, through an explicit client; a run counts as written when its tag `recorded` is set,
and one without it (a killed launcher's) is deleted and written again.
"""

import json
import logging
import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is away is told at once and asked again later (experiments.mirror); MLflow itself would ask for minutes,
# and a write repeated below the tracker could be done twice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param, RunTag

from experiments.asking import train_length
from experiments.config import Config
from experiments.grid import Cell, Grid
from experiments.lookup import open_experiment, study_filter
from experiments.study_record import study_record
from experiments.trials import Trial
from pipelines.engine import Artifact, Failure, Stage, Store, fingerprint
from pipelines.preprocess import QUARANTINED_RECORDS
from reports.results import search

METRICS_PER_BATCH = 1000
COMPARED = ("variant", "setting", "layout", "allocation", "scaling", "seed", "benchmark", "context", "scale_rule")
RECORDED = "recorded"
SEARCHED_TAG = "scale_search"


class Tracker:
    """The MLflow runs of one study, as they are; `record` brings them up to what the store holds."""

    def __init__(self, config: Config, grid: Grid, store: Store, *, resolved: str, command: str) -> None:
        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._config, self._grid, self._store = config, grid, store
        self._client, self._experiment_id = open_experiment(config, store, config.study.name)
        self._overrides = shlex.split(command)[2:]
        self.written = 0  # runs written by this launch
        self._runs: dict[str, str] = {}
        self._study_run = self._open_study(resolved, command)
        self._runs = self._known_runs()

    @property
    def study_run_id(self) -> str:
        return self._study_run

    def digest_of_runs(self) -> str:
        """Of all that MLflow holds of the study's runs, and of those of its earlier grids, which a report compares."""
        runs = search(self._client, self._experiment_id, "")
        kept = [run.to_dictionary() for run in runs if run.data.tags.get("kind") in ("study", "trial", "cell")]
        return fingerprint(sorted(json.dumps(run, sort_keys=True) for run in kept))

    def record(self, stage: Stage, artifact: Artifact, *, cached: bool) -> None:
        """Mirror one finished stage: a fine-tuning as a trial run, an evaluation as cell runs, the data's losses."""
        if stage.fingerprint == self._grid.frames.fingerprint:
            self._record_data(artifact)
        for trial in self._grid.trials:
            if stage.fingerprint == trial.finetune.fingerprint:
                self._record_trial(trial, artifact, cached)
            elif trial.name not in self._runs:
                continue  # no checkpoint of it is in the store, so that there is no run for its cells to hang from
            elif trial.search and stage.fingerprint == trial.search.fingerprint:
                self._record_search(trial, artifact)
            for (benchmark, rule), evaluation in trial.evaluations.items():
                if stage.fingerprint == evaluation.fingerprint:
                    self._record_evaluation(trial, benchmark, rule, artifact, cached)

    def record_failure(self, stage: Stage, failure: Failure) -> None:
        """Mirror a failed stage in the runs that would have come from it."""
        error = failure.error.splitlines()[0][:500]
        for trial in self._grid.trials:
            if stage.fingerprint == trial.finetune.fingerprint and trial.name not in self._runs:
                run = self._create(trial.name, trial.name, self._study_run, self._trial_tags(trial) | {"error": error})
                self._client.set_terminated(run, status="FAILED")
        for cell in self._grid.cells:
            if cell.stage.fingerprint == stage.fingerprint and cell.trial.name in self._runs:
                tags = self._cell_tags(cell) | {"error": error}
                run = self._create(cell.id, self._cell_name(cell), self._runs[cell.trial.name], tags)
                self._client.set_terminated(run, status="FAILED")
                del self._runs[cell.id]

    def finish(self, *, ok: bool) -> None:
        """Set the end of the study run and of its trials."""
        status = "FINISHED" if ok else "FAILED"
        for run_id in [self._study_run, *(self._runs[t.name] for t in self._grid.trials if t.name in self._runs)]:
            if self._client.get_run(run_id).info.status != status:
                self._client.set_terminated(run_id, status=status)

    def log_report(self, folder: Path) -> None:
        self._client.log_artifacts(self._study_run, str(folder), "report")

    def _open_study(self, resolved: str, command: str) -> str:
        for run in search(self._client, self._experiment_id, study_filter(self._grid)):
            if run.data.tags.get(RECORDED):
                return run.info.run_id
            self._client.delete_run(run.info.run_id)
        study = self._config.study
        tags = {
            "kind": "study",
            "study": study.name,
            "question": study.question,
            "baseline": study.baseline,
            "command": command,
            "expected_cells": str(len(self._grid.cells)),
            "grid": self._grid.fingerprint,
        }
        run_id = self._create("", study.name, None, tags)
        self._client.log_text(run_id, resolved, "config.yaml")
        self._client.log_text(run_id, json.dumps(study_record(self._config, self._grid), indent=1), "study.json")
        self._client.set_tag(run_id, RECORDED, "1")
        return run_id

    def _known_runs(self) -> dict[str, str]:
        """Run ids by trial name and cell id; what a killed launcher left half written, or failed, is deleted."""
        known: dict[str, str] = {}
        for run in search(self._client, self._experiment_id, f"tags.study_run = '{self._study_run}'"):
            if run.data.tags.get(RECORDED):
                known[run.data.tags["key"]] = run.info.run_id
            else:
                self._client.delete_run(run.info.run_id)
        return known

    def _create(self, key: str, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
        if parent is not None:
            tags = {**tags, "mlflow.parentRunId": parent, "study_run": self._study_run, "key": key}
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        if key:
            self._runs[key] = run.info.run_id
        self.written += 1
        return run.info.run_id

    def _record_data(self, artifact: Artifact) -> None:
        """How many records the study has, and those that cannot be used: once, in the study run."""
        if "data/records" in self._client.get_run(self._study_run).data.metrics:
            return
        rows = (artifact.path / QUARANTINED_RECORDS).read_text(encoding="utf-8").splitlines()
        self._client.log_text(self._study_run, f"[{', '.join(rows)}]", "data/quarantine.json")
        self._client.log_metric(self._study_run, "data/quarantined", len(rows))
        self._client.log_metric(self._study_run, "data/records", artifact.result["records"])

    def _record_trial(self, trial: Trial, artifact: Artifact, cached: bool) -> None:
        if trial.name in self._runs:
            return
        run_id = self._create(trial.name, f"{trial.label} seed {trial.seed}", self._study_run, self._trial_tags(trial))
        lines = (artifact.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"train/{key}", value, now, step)
            for line in map(json.loads, lines)
            for step in [line.pop("step")]
            for key, value in line.items()
        ]
        training = trial.config.cluster.training
        costs = self._costs(artifact, training.workers * training.gpus_per_worker)
        metrics += [Metric(key, value, now, 0) for key, value in costs.items()]
        metrics += [Metric("cached", float(cached), now, 0)]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_BATCH])
        settings = {"seed": trial.seed, "model": asdict(trial.config.model), "recipe": asdict(trial.config.recipe)}
        params = flatten({"variant": trial.variant.to_dict(), **settings})
        # What was really used (hashes of samples and position ids, drawn scales, attention): found, not set.
        found = [RunTag(f"found.{key}", str(value)) for key, value in flatten(artifact.result).items()]
        self._client.log_batch(
            run_id,
            params=[Param(key, str(value)[:500]) for key, value in params.items()],
            tags=[*found, RunTag(RECORDED, "1")],
        )

    def _record_search(self, trial: Trial, artifact: Artifact) -> None:
        run_id = self._runs[trial.name]
        if SEARCHED_TAG in self._client.get_run(run_id).data.tags:
            return
        self._client.log_artifact(run_id, str(artifact.path / "scale_search.json"))
        cluster = trial.config.cluster
        gpus = cluster.search_workers * cluster.training.gpus_per_worker  # its workers hold them
        values, now = {"chosen": artifact.result["chosen"], **self._costs(artifact, gpus)}, int(time.time() * 1000)
        metrics = [Metric(f"scale_search/{key}", value, now, 0) for key, value in values.items()]
        self._client.log_batch(run_id, metrics=metrics)
        self._client.set_tag(run_id, SEARCHED_TAG, artifact.fingerprint)

    def _record_evaluation(self, trial: Trial, benchmark: str, rule: str, artifact: Artifact, cached: bool) -> None:
        cells = [
            cell
            for cell in self._grid.cells
            if cell.trial.name == trial.name and (cell.benchmark, cell.scale_rule) == (benchmark, rule)
        ]
        if all(cell.id in self._runs for cell in cells):
            return
        self._client.log_text(
            self._runs[trial.name], self._questions(trial, benchmark, artifact), f"questions/{benchmark}/{rule}.jsonl"
        )
        for cell in cells:
            if cell.id in self._runs:
                continue
            tags = self._cell_tags(cell)
            run_id = self._create(cell.id, self._cell_name(cell), self._runs[trial.name], tags)
            found = artifact.result["contexts"][str(cell.context)]
            values = {
                "accuracy": found["accuracy"],
                f"accuracy/{cell.context}": found["accuracy"],
                **{f"accuracy/{metric_name(kind)}": value for kind, value in found["kinds"].items()},
                "questions": found["questions"],
                "errors": found["errors"],
                "unparsed": found["unparsed"],
                **_further_means(found),
                **{f"prefill/{name}": value for name, value in found.get("prefill", {}).items()},
                "duration_s": found["duration_s"],
                "gpu_hours": cell.stage.resources.num_gpus * found["duration_s"] / 3600,
                "cached": float(cached),
            }
            now = int(time.time() * 1000)
            scale = artifact.result["scale"]
            # Tags are for searching; MLflow's compare page and parallel coordinates show parameters.
            params = {name: tags[name] for name in COMPARED if tags[name]} | (
                {} if scale is None else {"scale": str(scale)}
            )
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, float(value), now, 0) for key, value in values.items()],
                params=[Param(key, value) for key, value in params.items()],
                tags=[RunTag("incomplete", str(found["errors"]))] * bool(found["errors"]) + [RunTag(RECORDED, "1")],
            )
            self._client.set_terminated(run_id)

    def _questions(self, trial: Trial, benchmark: str, artifact: Artifact) -> str:
        lines = map(json.loads, (artifact.path / "questions.jsonl").read_text(encoding="utf-8").splitlines())
        added = {"seed": trial.seed, "variant": trial.variant.name}
        return "".join(
            json.dumps({**line, "multiple": self._multiple(benchmark, line["context"]), **added}) + "\n"
            for line in lines
        )

    def _multiple(self, benchmark: str, context: int) -> str:
        return f"{context / train_length(self._config, benchmark):g}x"

    def _costs(self, artifact: Artifact, num_gpus: float) -> dict[str, float]:
        record = self._store.record(artifact.stage, artifact.fingerprint)
        duration_s = float(record.provenance["process"]["duration_s"]) if record else 0.0
        return {"duration_s": duration_s, "gpu_hours": num_gpus * duration_s / 3600}

    def _trial_tags(self, trial: Trial) -> dict[str, str]:
        return {
            "kind": "trial",
            "study": self._config.study.name,
            "variant": trial.variant.name,
            "layout": trial.variant.positions.kind,
            "allocation": trial.variant.frequencies.kind,
            "scaling": trial.variant.scaling.kind,
            "seed": str(trial.seed),
            "setting": trial.setting,
            "model": trial.config.model.name,
            "recipe": trial.config.recipe.name,
            "trial": trial.name,
            "fingerprint": trial.finetune.fingerprint,
        }

    def _cell_name(self, cell: Cell) -> str:
        return (
            f"{cell.trial.label} s{cell.trial.seed} {cell.benchmark} "
            f"{self._multiple(cell.benchmark, cell.context)} {cell.scale_rule}"
        )

    def _cell_tags(self, cell: Cell) -> dict[str, str]:
        budget = {"frames": asdict(cell.budget), "context": cell.context}
        return self._trial_tags(cell.trial) | {
            "kind": "cell",
            "benchmark": cell.benchmark,
            "context": str(cell.context),
            "scale_rule": cell.scale_rule,
            "budget": fingerprint(budget)[:12],
            "question_set": cell.question_set,
            "scorer": self._config.benchmarks[cell.benchmark].scorer,
            "command": shlex.join(["hope", "run", *self._overrides, "--only", cell.id]),
            "fingerprint": cell.stage.fingerprint,
        }


def metric_name(text: str) -> str:
    """The text with what MLflow refuses in a metric's name replaced."""
    return re.sub(r"[^\w\-. :]", "_", text) or "none"


def _further_means(found: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that multiple-choice benchmarks have beside their accuracy."""
    values = {f"accuracy/{name}": value for name, value in found.get("means", {}).items()}
    for group, means in found.get("groups", {}).items():
        values |= {f"accuracy/{metric_name(group)}/{metric_name(name)}": value for name, value in means.items()}
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
