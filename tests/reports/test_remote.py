"""Reports from a tracking server on a machine that has no store, and addresses of the server's own pages."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.parse import parse_qs, urlparse
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from reports.dashboard import comparison_addresses
from reports.render import write_report
from reports.results import StudyResults, load_study
from tests.reports.bulk import write_study_in_bulk
from tests.reports.conftest import STUDY
from tests.reports.design import PAIR, Design
from tests.reports.factory import write_to

SMALL = Design(name="remote", variants=PAIR, seeds=(0,), scale_rules=("published",), questions=10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server that keeps artifacts itself: its clients never see a folder of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "kept-by-the-server")]
    with (tmp_path / "server.log").open("w") as log:
        lean = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=lean)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(f"{address}/health", process)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: "subprocess.Popen[bytes]", patience_s: float = 400) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"no server at {address}")


@pytest.mark.slow
def test_a_report_is_built_from_a_server_alone(server: str, tmp_path: Path) -> None:
    experiment = MlflowClient(server).create_experiment(SMALL.name)
    assert MlflowClient(server).get_experiment(experiment).artifact_location.startswith("mlflow-artifacts:")
    write_to(server, experiment, tmp_path / "staging", SMALL)
    found = load_study(server, SMALL.name)
    assert len(found.cells) == found.expected_cells
    assert len(found.questions) == SMALL.questions * len(found.cells)
    html = write_report(found, tmp_path / "report").html.read_text()
    for cell in found.cells.itertuples():
        assert f"{server}/#/experiments/{experiment}/runs/{cell.run_id}" in html


def test_a_study_of_more_cells_than_one_page_of_a_search_is_read_whole(root: Path) -> None:
    design = replace(SMALL, name="paged", seeds=tuple(range(6)), contexts=tuple(range(16, 116)), questions=1, steps=5)
    uri = write_study_in_bulk(root, design)
    found = load_study(uri, design.name)
    assert len(found.cells) == found.expected_cells == 1200
    assert len(found.questions) == 1200


def test_the_comparison_page_shows_the_finished_cells_of_the_newest_run(store: str, results: StudyResults) -> None:
    address = urlparse(comparison_addresses(store, "http://127.0.0.1:5000")[STUDY.name])
    assert address.fragment.startswith("/compare-runs?")
    asked = parse_qs(address.fragment.removeprefix("/compare-runs?"))
    finished = results.cells[results.cells.status == "FINISHED"]
    shown = json.loads(asked["runs"][0])
    assert set(shown) <= set(finished.run_id)
    assert set(finished[finished.context == "64"].run_id) <= set(shown)
    assert json.loads(asked["experiments"][0]) == [results.experiment_id]
