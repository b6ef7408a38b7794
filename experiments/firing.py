"""Firings of a schedule: kept in the store, and written to MLflow as experiment `schedule`, one run per firing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from experiments.compose import load_config
from experiments.config import FIRINGS
from experiments.lookup import Unusable, find_study_run, open_experiment
from experiments.mirror import UNREACHABLE
from experiments.rerun import open_rerun
from experiments.study import open_study
from pipelines.engine import State, Store, hide_passwords, plan
from reports.results import search

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Firing:
    """One run of one job, as store/schedule/<id>.json holds it; `study_run` and `mlflow_run` are MLflow run ids."""

    id: str
    job: str
    cause: str
    due: str
    started: str
    duration_s: float
    command: str
    exit_code: int
    ran: tuple[str, ...]
    study_run: str | None
    log: str
    mlflow_run: str | None = None


def write_firing(store: Path, firing: Firing) -> None:
    folder = store / "schedule"
    folder.mkdir(exist_ok=True)
    new = folder / f".{firing.id}.new"
    new.write_text(json.dumps(asdict(firing), indent=1), encoding="utf-8")
    new.replace(folder / f"{firing.id}.json")


def read_firings(store: Path) -> list[Firing]:
    """Every firing of the store, oldest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (store / "schedule").glob("*.json")]
    firings = [Firing(**{**values, "ran": tuple(values["ran"])}) for values in found]
    return sorted(firings, key=lambda firing: firing.started)


def missing_stages(overrides: Sequence[str]) -> list[str]:
    """The labels of the stages that a re-run would run now; none where it cannot run at all."""
    try:
        study = open_rerun(overrides).study
    except ValueError:
        return []
    return [item.stage.label for item in plan(study.store, study.selected.targets) if item.state != State.DONE]


def study_run_of(overrides: Sequence[str]) -> str | None:
    """The id of the study run that a re-run reports into, if it is in MLflow."""
    try:
        study = open_study(overrides)
        return find_study_run(study.config, study.grid)
    except ValueError:
        return None


def record_firing(store: Path, firing: Firing, overrides: Sequence[str], tell: Tell) -> None:
    """Keep a firing in the store, and write it and any earlier one that MLflow lacks; a server that is away waits."""
    write_firing(store, firing)
    try:
        config, _ = load_config(overrides)
    except ValueError as error:
        tell(f"{firing.job}: {error}")
        return
    waiting = [each for each in read_firings(store) if each.mlflow_run is None]
    try:
        client, experiment_id = open_experiment(config, Store(store), FIRINGS)
        for each in waiting:
            write_firing(store, replace(each, mlflow_run=log_firing(client, experiment_id, each)))
    except Unusable as error:
        tell(f"{firing.job}: {error}")
    except UNREACHABLE as error:
        reason = hide_passwords(str(error))[:200]
        tell(f"the tracking server is away, {len(waiting)} firings wait in {store / 'schedule'} ({reason})")


def log_firing(client: MlflowClient, experiment_id: str, firing: Firing) -> str:
    """Write one firing as a run; one that a killed scheduler left is completed, not doubled."""
    for run in search(client, experiment_id, f"tags.firing = '{firing.id}'"):
        client.delete_run(run.info.run_id)
    tags = {"firing": firing.id, "job": firing.job, "cause": firing.cause, "command": firing.command}
    tags |= {"due": firing.due, "started": firing.started, "log": firing.log, "study_run": firing.study_run or ""}
    run = client.create_run(experiment_id, run_name=firing.id, tags=tags)
    now = run.info.start_time
    metrics = {"exit_code": firing.exit_code, "stages_run": len(firing.ran), "duration_s": firing.duration_s}
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
        tags=[RunTag("exit_code", str(firing.exit_code))],
    )
    client.log_text(run.info.run_id, "".join(f"{label}\n" for label in firing.ran), "ran.txt")
    client.set_terminated(run.info.run_id, status="FINISHED" if firing.exit_code == 0 else "FAILED")
    return str(run.info.run_id)
