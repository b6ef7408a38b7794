"""Whole studies: through Ray, decord, Optuna and MLflow, killed and resumed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cli import main
from experiments.study import open_study, run_study
from tests.experiments.conftest import ONE_TRIAL
from tests.experiments.runs import attempts, check_tree, numbers, published, runs_of

pytestmark = pytest.mark.slow

NOWHERE = "127.0.0.1:1"  # a cluster that the environment names is not joined unless the config asks for it


def launch(overrides: list[str]) -> "subprocess.Popen[str]":
    """Start `hope run` as a process of its own."""
    command = [sys.executable, "-m", "experiments", "run", *overrides]
    environment = os.environ | {"RAY_ADDRESS": NOWHERE}
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


def test_a_study_killed_interrupted_and_ended_by_two_launchers_has_the_numbers_of_an_undisturbed_one(
    small: list[str], finished_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One trial, so that what is left at each kill is known; tests.experiments.kills kills two at random moments.
    small = [*ONE_TRIAL, *small]
    kill_when(launch(small), lambda line: "finished finetune" in line, signal.SIGKILL)
    interrupted = launch(small)
    seen = kill_when(interrupted, lambda line: "finished features" in line, signal.SIGINT)
    output = "".join(seen) + finish(interrupted, code=130)
    assert "continues" in output
    assert "Traceback" not in output
    before, done = attempts(small), published(small)
    # Scales are measured in processes of their own now; in the undisturbed study everything was in one.
    both = [launch([*small, "cluster.search_workers=2"]) for _ in range(2)]
    assert all("report:" in finish(launcher) for launcher in both)
    begun = attempts(small)
    assert begun.keys() > before.keys()
    once = {label: before.get(label, 0) + (label not in done) for label in begun}
    assert begun == once, "two launchers began a stage once, and none that was done"
    assert numbers(small) == numbers([*small[:-1], f"store={finished_store}"])
    check_tree(small)

    report = Path(small[-1].removeprefix("store=")) / "reports" / "smoke" / "report.html"
    made = report.read_bytes()
    assert main(["run", *small]) == 0
    again = capsys.readouterr().out
    assert "nothing to do" in again
    assert "finished" not in again
    assert report.read_bytes() == made
    check_tree(small)


class InterruptedAt(StringIO):
    """A terminal at which Ctrl-C is pressed once, at the line that begins so."""

    def __init__(self, begin: str) -> None:
        super().__init__()
        self._begin: str | None = begin

    def write(self, text: str) -> int:
        if self._begin and text.startswith(self._begin):
            self._begin = None
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupt_after_the_stages_names_the_command_that_continues(
    finished: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    study = open_study(finished)
    terminal = InterruptedAt("ran ")
    assert run_study(study, Console(file=terminal)) == 130
    assert "interrupted; what is done is kept: hope run study=smoke" in terminal.getvalue()
    assert "report: " not in terminal.getvalue()
    assert main(["run", *finished]) == 0
    assert "report: " in capsys.readouterr().out


def test_a_failing_trial_is_recorded_and_the_others_are_done(
    finished: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    # No float32 holds this factor, so that the loss of one variant is not a number.
    far = "{name:far,positions:diagonal,frequencies:temporal_low,scaling:{kind:fixed,factor:1e39}}"
    broken = [*finished, f"study.variants=[{far},m_rope]", "study.scale_rules=[equal]"]
    assert main(["run", *broken]) == 1
    output = capsys.readouterr().out
    assert "failed finetune far-s0: FloatingPointError: the loss is nan at step 0" in output
    assert "--only far-s0" in output
    assert main(["status", *broken]) == 1
    assert "2 of 4 cells done" in capsys.readouterr().out
    tags = {run.data.tags["key"]: run for run in runs_of(broken) if run.data.tags["kind"] == "trial"}
    assert tags["far-s0"].info.status == "FAILED"
    assert tags["m_rope-s0"].data.metrics["train/loss"] > 0
