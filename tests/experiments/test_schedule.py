import json
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.cli import main
from experiments.compose import quoted
from experiments.firing import read_firings
from experiments.rerun import open_rerun
from experiments.schedule import AlreadyRunning, Schedule, cron, every, make_task, only_scheduler
from pipelines.engine import LocalRunner, Store
from tests.experiments.conftest import ONE_TRIAL
from tests.experiments.servers import free_port
from tests.pipelines.benchmarks.miniatures import write_mlvu


class Clock:
    """A time that moves when told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


def artifacts(store: Path) -> set[str]:
    return {f"{path.parent.parent.name}/{path.parent.name}" for path in store.glob("artifacts/*/*/record.json")}


@pytest.mark.slow
def test_a_changed_benchmark_folder_runs_exactly_the_new_cells_once(finished: list[str], tmp_path: Path) -> None:
    store, folder, clock = tmp_path / "out", tmp_path / "mlvu", Clock()
    write_mlvu(folder, videos=3)
    tiny = "{fps:2.0,frames_per_1000_tokens:250.0,min_frames:2,min_tokens:1,max_tokens:4}"
    mlvu = [f"root={folder}", "contexts_tokens=[16]", "max_new_tokens=3", f"budget={tiny}"]
    study = [*finished, *ONE_TRIAL, "benchmark=mlvu", *(f"benchmarks.mlvu.{each}" for each in mlvu)]
    assert LocalRunner(Store(store)).run(open_rerun(study).study.selected.targets).ok
    before = artifacts(store)
    with Schedule(store, clock=clock) as schedule:
        schedule.add(every(2), make_task("watched", study, crontab=None, watch=folder))
        for _ in range(3):
            clock.forward(seconds=2)
            assert schedule.run_due(print) == []
        counting = folder / "json" / "4_count.json"
        counting.write_text(json.dumps([*json.loads(counting.read_text())[1:]]))
        clock.forward(seconds=2)
        assert schedule.run_due(print) == []  # it may still be being written
        clock.forward(seconds=2)
        (firing,) = schedule.run_due(print)
        clock.forward(hours=1)
        assert schedule.run_due(print) == []
    assert firing.exit_code == 0, (store / firing.log).read_text()
    evaluations = [label for label in firing.ran if label.startswith("evaluate")]
    assert len(evaluations) == 2
    assert all("mlvu" in label for label in firing.ran), firing.ran
    assert len(artifacts(store) - before) == len(firing.ran)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("schedule").experiment_id])
    assert run.data.tags["cause"] == f"{folder} changed"
    assert run.data.metrics == {"exit_code": 0, "stages_run": len(firing.ran), "duration_s": firing.duration_s}
    assert client.get_run(run.data.tags["study_run"]).data.tags["expected_cells"] == "6"
    assert [each.mlflow_run for each in read_firings(store)] == [run.info.run_id]


def test_a_job_outlives_its_scheduler_and_what_was_missed_runs_once(small: list[str], tmp_path: Path) -> None:
    store, clock = tmp_path / "out", Clock()
    with Schedule(store, clock=clock) as schedule:
        schedule.add(cron("0 3 * * *"), make_task("nightly", small, crontab="0 3 * * *", watch=None))
    clock.forward(days=3)
    with Schedule(store, clock=clock) as schedule:
        (firing,) = schedule.run_due(print)
        assert schedule.run_due(print) == []
        (job,) = schedule.jobs()
        assert clock.now < job.next_run_time <= clock.now + timedelta(days=1)
    assert firing.exit_code == 2  # nothing has been trained, and a schedule trains nothing
    assert "has no checkpoint" in (store / firing.log).read_text()
    assert (firing.ran, firing.study_run) == ((), None)


def test_a_firing_keeps_no_password_but_in_the_schedule_that_only_its_owner_reads(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, clock, told = tmp_path / "out", Clock(), list[str]()
    study = [*small, f"tracking_uri=http://me:hunter2@127.0.0.1:{free_port()}"]
    with Schedule(store, clock=clock) as schedule:
        schedule.add(cron("0 3 * * *"), make_task("nightly", study, crontab="0 3 * * *", watch=None))
    clock.forward(days=1)
    with Schedule(store, clock=clock) as schedule:
        (firing,) = schedule.run_due(told.append)
    assert "tracking_uri=http://USER:PASSWORD@127.0.0.1" in firing.command
    assert main(["schedule", "list", f"store={store}"]) == 0
    assert "hunter2" not in "".join([*told, *capsys.readouterr()])
    holding = [path.name for path in store.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert holding == ["schedule.db"]


def test_a_store_of_any_name_is_found_again_by_its_firings(small: list[str], tmp_path: Path) -> None:
    store, clock = tmp_path / "jürgen, (a b)=1", Clock()
    study = [*small, f"store={quoted(str(store))}"]
    with Schedule(store, clock=clock) as schedule:
        schedule.add(cron("0 3 * * *"), make_task("nightly", study, crontab="0 3 * * *", watch=None))
        clock.forward(days=1)
        (firing,) = schedule.run_due(print)
    assert "has no checkpoint" in (store / firing.log).read_text()


def test_one_scheduler_works_on_a_store_and_a_rerun_that_outlives_it_counts(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"store={tmp_path / 'out'}"
    assert main(["schedule", "add", "nightly", "--cron", "0 3 * * *", *small]) == 0
    left = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with only_scheduler(tmp_path / "out") as lock:
        rerun = subprocess.Popen(left, stdin=subprocess.PIPE, pass_fds=(lock,))
        assert main(["schedule", "start", store]) == 2
        assert "one at a time" in capsys.readouterr().err
        assert main(["schedule", "start", "--once", store]) == 0
    with pytest.raises(AlreadyRunning), only_scheduler(tmp_path / "out"):
        pass
    rerun.communicate()
    assert main(["schedule", "start", "--once", store]) == 0


def test_the_schedule_is_listed_and_only_its_owner_can_read_it(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"store={tmp_path / 'out'}"
    more = ["benchmark=v_niah", "benchmarks.v_niah.num_validation_films=1"]
    assert main(["schedule", "add", "nightly", "--cron", "0 3 * * mon", *small, *more]) == 0
    assert main(["schedule", "add", "watched", "--watch", str(tmp_path), "--every-s", "2", *small]) == 0
    assert stat.S_IMODE((tmp_path / "out" / "schedule.db").stat().st_mode) == 0o600
    capsys.readouterr()
    assert main(["schedule", "list", store]) == 0
    said = capsys.readouterr().out
    assert "cron 0 3 * * mon: hope rerun study=smoke" in said
    assert f"{tmp_path} changed: hope rerun study=smoke" in said
    assert main(["schedule", "remove", "nightly", store]) == 0
    assert main(["schedule", "list", store]) == 0
    assert "nightly" not in capsys.readouterr().out
    assert main(["schedule", "add", "watched", "--cron", "0 3 * * *", *small]) == 2
    assert "'watched' is there already" in capsys.readouterr().err
    assert main(["schedule", "remove", "nightly", store]) == 2
    assert "there are watched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "nightly", "--cron", "0 3 * *", "study=smoke"], "is no time"),
        (["add", "nightly", "--cron", "0 3 * * 1", "study=smoke"], "days of the week as mon ... sun"),
        (["add", "nightly", "--cron", "0 25 * * *", "study=smoke"], "is no time"),
        (["add", "never", "--cron", "0 0 31 2 *", "study=smoke"], "'0 0 31 2 *' never comes"),
        (["add", "a/b", "--cron", "0 3 * * *", "study=smoke"], "use letters, digits"),
        (["add", "nightly", "--cron", "0 3 * * *", "study=nope"], "unknown study 'nope'"),
        (["add", "watched", "--watch", "nowhere", "study=smoke"], "is no folder"),
        (["add", "watched", "--watch", ".", "--every-s", "0", "study=smoke"], "give seconds above 0"),
        (["add", "watched", "--watch", ".", "--every-s", "inf", "study=smoke"], "--every-s is inf; give seconds above"),
        (["add", "watched", "--watch", ".", "--every-s", "nan", "study=smoke"], "--every-s is nan; give seconds above"),
        (["add", "watched", "--watch", ".", "--every-s", "1e12", "study=smoke"], "at most 31536000"),
        (["start"], "has no schedule"),
        (["list", "store=nowhere"], "has no schedule"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["schedule", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not any(tmp_path.iterdir())
