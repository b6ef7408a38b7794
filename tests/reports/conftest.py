"""One simulated study for all tests that only read."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from reports.results import StudyResults, load_study
from tests.reports.bulk import write_study_in_bulk
from tests.reports.design import QUICKSTART, Design

EVIL = "<script>alert('x')</script>"
STUDY = Design(
    question=f"Which {EVIL} variant & why?",
    variants=QUICKSTART,
    scale_rules=("published", "equal", "searched"),
    failed=frozenset({("hope", 1, "v_niah", 64, "equal")}),
    error=f"RuntimeError: {EVIL} | broken",
    answer=EVIL,
    unanswered=frozenset({("videorope", 64)}),
    quarantine=({"record": f"clip7 {EVIL}", "line": 12, "reason": f"no video stream {EVIL}"},),
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store of all these tests lies: making a new one takes MLflow seconds, a new study does not."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def store(root: Path) -> str:
    """The tracking URI of STUDY: six variants, two seeds, two contexts, one failed cell, hostile text."""
    return write_study_in_bulk(root, STUDY)


@pytest.fixture(scope="session")
def results(store: str) -> StudyResults:
    return load_study(store, STUDY.name)
