import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import Cell, build_grid
from pipelines.engine import Store


def spoil(overrides: list[str], causes: Callable[[Cell], list[str]]) -> None:
    """Let questions of finished cells have ended in errors, one for each cause."""
    config, _ = load_config(overrides)
    store = Store(config.store)
    for cell in build_grid(config).cells:
        path = store.artifact_path(cell.stage.name, cell.stage.fingerprint)
        lines = [json.loads(line) for line in (path / "questions.jsonl").read_text().splitlines()]
        own = [line for line in lines if line["context"] == cell.context]
        for line, cause in zip(own, causes(cell), strict=False):
            line["error"] = cause
        (path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = json.loads((path / "record.json").read_text())
        record["result"]["contexts"][str(cell.context)]["errors"] = len(causes(cell))
        (path / "record.json").write_text(json.dumps(record))


def said(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["status", *overrides]) == 1
    lines = capsys.readouterr().out.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("incomplete")) :]


def test_a_damaged_video_that_every_cell_lacks_is_told_once(
    finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(finished, lambda cell: ["film0: DamagedVideo", "film1: no such file"])
    cells = build_grid(load_config(finished)[0]).cells
    assert said(finished, capsys) == [
        f"incomplete {cells[0].id}: 2 questions ended in an error, and some of {len(cells) - 1} more cells of v_niah_d "
        "for the same causes:",
        "  film0: DamagedVideo",
        "  film1: no such file",
    ]


def test_cells_with_causes_of_their_own_are_told_apart_and_of_many_causes_the_first_and_the_file(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = build_grid(load_config(finished)[0]).cells
    spoil(finished, lambda cell: [f"film{n}: DamagedVideo" for n in range(5 if cell.id == cells[0].id else 1)])
    first, *rest = said(finished, capsys)
    assert first == f"incomplete {cells[0].id}: 5 questions ended in an error:"
    assert rest[:3] == [f"  film{n}: DamagedVideo" for n in range(3)]
    where = tmp_path / "out" / "artifacts" / "evaluate" / cells[0].stage.fingerprint / "questions.jsonl"
    assert rest[3] == f"  and 2 more causes, all in {where}"
    assert rest[4].startswith(f"incomplete {cells[1].id}: 1 question ended in an error, and some of")
    assert rest[5:] == ["  film0: DamagedVideo"]
