"""Finding a study's experiment and run in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from experiments.alone import alone
from experiments.config import Config
from experiments.grid import Grid
from pipelines.engine import Store, hide_passwords
from pipelines.engine.lease import LeaseWatch, this_owner
from reports.results import open_tracking, search


class Unusable(ValueError):
    """The database, or the experiment, is there but cannot be used until a person does something about it."""


@contextmanager
def readable(tracking: str) -> Iterator[None]:
    """Raise Unusable, in one line, where a local database turns out to be damaged, or cannot be opened."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = " ".join(str(error).split(" (Background")[0].split("\n")[0].split())
        raise Unusable(
            f"{tracking} cannot be read as MLflow's database ({reason}); correct tracking_uri, or move a damaged file "
            "away: hope sync writes the runs anew"
        ) from None


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment, if it is there. Raises Unusable for one that was deleted."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
        raise Unusable(
            f"experiment {name!r} was deleted in MLflow; restore it (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}), or give a study another study.name"
        )
    return found


def open_experiment(config: Config, store: Store, name: str) -> tuple[MlflowClient, str]:
    """A client and the id of an experiment, which is made if it is not there.

    With a local database its files lie in the store. Raises Unusable.
    """
    # MLflow lays out a new database without a lock of its own: of two that do, one dies.
    held = alone(store, "mlflow", this_owner(), LeaseWatch(store.lease_ttl_s), patient=True)
    with held, readable(config.tracking):
        client = MlflowClient(config.tracking)
        found = find_experiment(client, name)
        if found is not None:
            return client, str(found.experiment_id)
        local = config.tracking.startswith("sqlite:")
        location = (store.root.resolve() / "mlartifacts" / name).as_uri() if local else None
        return client, str(client.create_experiment(name, artifact_location=location))


def study_filter(grid: Grid) -> str:
    """Finds the study runs of exactly this grid."""
    return f"tags.kind = 'study' and tags.grid = '{grid.fingerprint}'"


def find_study_run(config: Config, grid: Grid) -> str:
    """The id of this grid's study run. Raises ValueError where it never ran, or cannot be looked for."""
    try:
        with readable(config.tracking):
            client = open_tracking(config.tracking)
            experiment = find_experiment(client, config.study.name)
            runs = list(search(client, experiment.experiment_id, study_filter(grid))) if experiment else []
    except MlflowException as error:
        raise ValueError(
            f"tracking server {hide_passwords(config.tracking)} cannot be asked: {hide_passwords(str(error))[:200]}; "
            "start it, or correct tracking_uri"
        ) from None
    if not runs:
        raise ValueError(
            f"study {config.study.name!r} with these settings is not in {hide_passwords(config.tracking)}; run it "
            "first, or give the overrides it was run with"
        )
    return str(runs[0].info.run_id)
