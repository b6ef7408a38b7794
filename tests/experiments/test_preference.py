"""What a study's record says of its variants' semantic preference."""

import pytest

from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.preference import preference_curve
from hope_core.theory import preference


def test_distances_are_in_frames_of_which_a_cell_has_several() -> None:
    config, _ = load_config(["study=smoke", "model.temporal_patch_size=2", "study.contexts_frames=[32, 128]"])
    trial = next(trial for trial in build_grid(config).trials if trial.variant.name == "m_rope")
    curve = preference_curve(config, trial)
    assert (curve["frames"][0], curve["frames"][-1]) == (2, 16 * 128)
    # The next cell of m_rope is one position away in time, and none in space.
    shape = {"head_dim": config.model.head_dim, "rope_theta": 1e4}
    for frames, value in zip(curve["frames"], curve["values"], strict=True):
        assert value == pytest.approx(float(preference(trial.variant, frames / 2, **shape)), abs=1e-4)
