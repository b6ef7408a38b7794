"""Finding a study's experiment and run in MLflow."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from experiments.alone import alone
from experiments.config import Config
from experiments.grid import Grid
from pipelines.engine import Store, hide_passwords
from pipelines.engine.lease import LeaseWatch, this_owner
from reports.results import open_tracking, search


def open_experiment(config: Config, store: Store, name: str) -> tuple[MlflowClient, str]:
    """A client and the id of an experiment, which is made if it is not there.

    With a local database its files lie in the store.
    """
    # MLflow lays out a new database without a lock of its own: of two that do, one dies.
    with alone(store, "mlflow", this_owner(), LeaseWatch(store.lease_ttl_s), patient=True):
        client = MlflowClient(config.tracking)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return client, str(found.experiment_id)
        local = config.tracking.startswith("sqlite:")
        location = (store.root.resolve() / "mlartifacts" / name).as_uri() if local else None
        return client, str(client.create_experiment(name, artifact_location=location))


def study_filter(grid: Grid) -> str:
    """Finds the study runs of exactly this grid."""
    return f"tags.kind = 'study' and tags.grid = '{grid.fingerprint}'"


def find_study_run(config: Config, grid: Grid) -> str:
    """The id of this grid's study run. Raises ValueError where it never ran."""
    client = open_tracking(config.tracking)
    try:
        experiment = client.get_experiment_by_name(config.study.name)
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
