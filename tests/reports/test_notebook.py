"""The example notebook runs as it stands."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.reports.conftest import STUDY

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "compare.ipynb"


@pytest.mark.slow
def test_the_example_notebook_runs_on_a_recorded_study(store: str, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert len([line for cell in code for line in cell.source.splitlines() if line]) <= 10
    code[0].source = f"tracking_uri, study = {store!r}, {STUDY.name!r}"
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said, tables, verdicts, figure = (cell.outputs[-1] for cell in code[1:])
    assert "than m-rope" in said.text or "cannot tell" in said.text
    assert "hope" in tables.data["text/html"]
    assert "cannot tell" in verdicts.data["text/html"]
    assert "image/png" in figure.data
