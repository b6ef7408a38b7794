from pathlib import Path

import pytest

SMALL = (
    "study=smoke",
    "model.hidden_size=32",
    "model.intermediate_size=32",
    "model.vision_embed_dim=16",
    "recipe.steps=3",
    "recipe.warmup_steps=1",
    "recipe.batch_size=4",
    "dataset.num_train_videos=64",
)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Overrides of a study that runs in seconds, with its store in a folder that does not exist yet."""
    return [*SMALL, f"store={tmp_path / 'out'}"]
