import os
import secrets
from pathlib import Path

import pytest

from pipelines.engine import Artifact
from tests.pipelines import world


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifacts of one trained trial by stage name: dataset, frames, finetune, features."""
    root: Path = tmp_path_factory.mktemp("world")
    return world.run(root, world.trained(root))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: processes are handed files in this order, and one alone has the last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


# Ray reads these once in a process, whoever asks first: every test of one process gets the same.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
