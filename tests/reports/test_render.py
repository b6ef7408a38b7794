"""A report is complete, stands alone, repeats and never runs what the data says."""

from pathlib import Path

import pytest

from reports.render import write_report
from reports.results import StudyResults, load_study
from tests.reports.factory import Design, write_study


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return load_study(write_study(tmp_path_factory.mktemp("store")), Design().name)


def test_the_same_study_reported_twice_gives_the_same_bytes(results: StudyResults, tmp_path: Path) -> None:
    first, second = write_report(results, tmp_path / "a"), write_report(results, tmp_path / "b")
    for name in ("html", "markdown", "latex", "cells_csv", "verdicts_csv", "questions_csv"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()
