"""One simulated study for all tests that only read."""

import os

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from reports.results import StudyResults, load_study
from tests.reports.factory import QUICKSTART, Design, write_study

EVIL = "<script>alert('x')</script>"
STUDY = Design(
    question=f"Which {EVIL} variant & why?",
    variants=QUICKSTART,
    scale_rules=("published", "equal", "searched"),
    failed=frozenset({("hope", 1, "v_niah", 64, "equal")}),
    error=f"RuntimeError: {EVIL} | broken",
    answer=EVIL,
)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of STUDY: six variants, two seeds, two contexts, one failed cell, hostile text."""
    return write_study(tmp_path_factory.mktemp("store"), STUDY)


@pytest.fixture(scope="session")
def results(store: str) -> StudyResults:
    return load_study(store, STUDY.name)
