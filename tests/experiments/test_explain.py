from pathlib import Path

import pytest

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from pipelines.engine import LocalRunner, Store


def test_explain_names_the_changed_field_and_what_rests_on_it(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = load_config(small)
    (trial, _) = build_grid(config).trials
    LocalRunner(Store(Path(config.store))).run([trial.finetune])
    cell = ["--cell", "m_rope-s0/v_niah_d/32/published"]
    assert main(["explain", *small, *cell]) == 0
    assert "done  finetune m_rope-s0" in capsys.readouterr().out
    assert main(["explain", *small, "recipe.lr=0.01", *cell]) == 0
    said = capsys.readouterr().out
    assert "runs  finetune m_rope-s0: config.recipe.lr: 0.001 -> 0.01" in said
    assert "runs  features m_rope-s0: rests on finetune m_rope-s0" in said
    assert "done  decode videos" in said
