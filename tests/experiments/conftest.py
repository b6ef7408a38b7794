import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import LocalRunner, Store

SMALL = (
    "study=smoke",
    "model.hidden_size=32",
    "model.intermediate_size=32",
    "model.vision_embed_dim=16",
    "recipe.steps=3",
    "recipe.warmup_steps=1",
    "recipe.batch_size=4",
    "dataset.num_train_videos=64",
    # One process for all stages, decoding too: each takes seconds to start, and the work itself next to none.
    "cluster.num_cpus=1",
    "cluster.decode_workers=0",
)

# Each trial has a process of its own, and its imports are most of what it costs.
ONE_TRIAL = ("study.variants=[{name: hope, published_scale: 0.75}]", "study.baseline=hope")


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Overrides of a study that runs in seconds, with its store in a folder that does not exist yet."""
    return [*SMALL, f"store={tmp_path / 'out'}"]


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every stage of the small study is done and nothing is in MLflow's database yet."""
    root = tmp_path_factory.mktemp("finished") / "out"
    config, _ = load_config([*SMALL, f"store={root}"])
    assert LocalRunner(Store(root)).run(build_grid(config).targets).ok
    MlflowClient(config.tracking).search_experiments()  # makes the database, which takes a second each time
    return root


@pytest.fixture
def finished(finished_store: Path, small: list[str], tmp_path: Path) -> list[str]:
    """Overrides of the small study with every stage done, in a store of the test's own."""
    shutil.copytree(finished_store, tmp_path / "out")
    return small
