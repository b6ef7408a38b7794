"""Whole studies: through Ray, decord, Optuna and MLflow, killed and resumed. The launcher is a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.runs import check_tree, numbers, runs_of

pytestmark = pytest.mark.slow


def launch(overrides: list[str]) -> "subprocess.Popen[str]":
    """Start `hope run`. A cluster that the environment names is not joined unless the config asks for it."""
    command = [sys.executable, "-m", "experiments", "run", *overrides]
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate()
    assert process.returncode == code, output
    return output


def kill_when(process: "subprocess.Popen[str]", seen: Callable[[str], bool], kind: signal.Signals) -> list[str]:
    """Send a signal at the first line that `seen` accepts; the lines until then."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if seen(line):
            os.kill(process.pid, kind)
            return lines
    raise AssertionError("the run ended first:\n" + "".join(lines))


def test_a_study_killed_and_interrupted_ends_with_the_numbers_of_an_uninterrupted_one(
    small: list[str], finished_store: Path
) -> None:
    # One trial, so that what is left at each kill is known; tests.experiments.kills kills two at random moments.
    small = [*small[:-1], "study.variants=[{name: hope, published_scale: 0.75}]", "study.baseline=hope", small[-1]]
    kill_when(launch(small), lambda line: "finished finetune" in line, signal.SIGKILL)
    interrupted = launch(small)
    seen = kill_when(interrupted, lambda line: "finished features" in line, signal.SIGINT)
    output = "".join(seen) + finish(interrupted, code=130)
    assert "continues" in output
    assert "Traceback" not in output
    # Scales are measured side by side now; in the uninterrupted study everything came one after the other.
    output = finish(launch([*small, "cluster.search_workers=2"]))
    assert "report:" in output
    assert numbers(small) == numbers([*small[:-1], f"store={finished_store}"])
    check_tree(small)

    report = Path(small[-1].removeprefix("store=")) / "reports" / "smoke" / "report.html"
    before = report.read_bytes()
    again = finish(launch(small))
    assert "nothing to do" in again
    assert "finished" not in again
    assert report.read_bytes() == before
    check_tree(small)


def test_a_failing_trial_is_recorded_and_the_others_are_done(small: list[str]) -> None:
    # No float32 holds this factor, so that the loss of one variant is not a number.
    far = "{name:far,positions:diagonal,frequencies:temporal_low,scaling:{kind:fixed,factor:1e39}}"
    # Its videos are decoded beside the stages, as in every study unless it says otherwise.
    beside = "cluster.decode_workers=2"
    broken = [*small, beside, f"study.variants=[m_rope,{far}]", "study.scale_rules=[equal]"]
    output = finish(launch(broken), code=1)
    assert "failed finetune far-s0: FloatingPointError: the loss is nan at step 0" in output
    assert "--only far-s0" in output
    status = subprocess.run(
        [sys.executable, "-m", "experiments", "status", *broken], capture_output=True, text=True, check=False
    )
    assert status.returncode == 1
    assert "2 of 4 cells done" in status.stdout
    tags = {run.data.tags["key"]: run for run in runs_of(broken) if run.data.tags["kind"] == "trial"}
    assert tags["far-s0"].info.status == "FAILED"
    assert tags["m_rope-s0"].data.metrics["train/loss"] > 0
