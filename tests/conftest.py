from pathlib import Path

import pytest

from pipelines.engine import Artifact
from tests.pipelines import world


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifacts of one trained trial by stage name: dataset, frames, finetune, features."""
    root: Path = tmp_path_factory.mktemp("world")
    return world.run(root, world.trained(root))
