import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.cli import main
from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.mirror import Mirror
from pipelines.engine import Event, EventKind, Store, walk
from tests.experiments.runs import check_tree, runs_of
from tests.experiments.servers import TrackingServer, free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path / "server")
    yield server
    server.stop()


def open_mirror(overrides: Sequence[str], told: list[str]) -> Mirror:
    config, resolved = load_config(overrides)
    store = Store(config.store)
    return Mirror(config, build_grid(config), store, resolved=resolved, command="hope run", tell=told.append)


def ends(overrides: Sequence[str]) -> list[Event]:
    """The ends of a finished study's stages, as its runner reported them."""
    config, _ = load_config(overrides)
    store = Store(config.store)
    stages = walk(build_grid(config).targets)
    return [Event(EventKind.FINISHED, stage, store.get(stage)) for stage in stages]


@pytest.mark.slow
def test_a_tracking_server_killed_mid_run_and_started_again_has_every_run_once(
    finished: list[str], server: TrackingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    study = [*finished, f"tracking_uri={server.uri}"]
    told: list[str] = []
    mirror = open_mirror(study, told)
    server.start()
    mirror.open()
    events = ends(study)
    for event in events[: len(events) // 2]:
        mirror.note(event)
    assert not told
    server.stop()
    for event in events[len(events) // 2 :]:
        mirror.note(event)
    assert mirror.finish(ok=True) is None
    (away,) = told
    assert "tracking server is away, 1 records wait" in away
    assert "hope sync study=smoke" in away
    assert main(["sync", *study]) == 1
    assert "once the tracking server is back: hope sync" in capsys.readouterr().out

    server.start()
    assert mirror.finish(ok=True)
    assert "back" in told[-1]
    check_tree(study)
    assert {run.data.metrics["cached"] for run in runs_of(study) if run.data.tags["kind"] == "cell"} == {0.0}
    before = {run.info.run_id for run in runs_of(study)}
    assert main(["sync", *study]) == 0
    assert "0 runs written" in capsys.readouterr().out
    assert {run.info.run_id for run in runs_of(study)} == before


def test_a_run_whose_server_never_answers_loses_nothing_to_the_next_one(finished: list[str]) -> None:
    told: list[str] = []
    away = open_mirror([*finished, f"tracking_uri=http://127.0.0.1:{free_port()}"], told)
    away.open()
    for event in ends(finished):
        away.note(event)
    assert away.finish(ok=True) is None
    assert len(told) == 1
    assert main(["sync", *finished]) == 0
    check_tree(finished)


def test_a_trial_says_how_long_its_training_and_its_scale_search_took(finished: list[str]) -> None:
    workers = ["cluster.training.workers=2", "cluster.search_workers=2", "cluster.training.gpus_per_worker=1"]
    assert main(["sync", *finished, *workers]) == 0
    config, _ = load_config(finished)
    store = Store(config.store)
    trials = {trial.name: trial for trial in build_grid(config).trials}
    found = {run.data.tags["key"]: run.data.metrics for run in runs_of(finished) if run.data.tags["kind"] == "trial"}
    for name, trial in trials.items():
        for stage, prefix, gpus in ((trial.finetune, "", 2), (trial.search, "scale_search/", 2)):
            assert stage
            record = store.record(stage.name, stage.fingerprint)
            assert record
            seconds = record.provenance["process"]["duration_s"]
            assert found[name][f"{prefix}duration_s"] == seconds > 0
            assert found[name][f"{prefix}gpu_hours"] == pytest.approx(gpus * seconds / 3600)


def test_a_writer_cut_off_in_the_middle_of_a_run_leaves_no_half_of_it(finished: list[str]) -> None:
    mirror = open_mirror(finished, [])
    events = ends(finished)
    for event in events[:-1]:
        mirror.note(event)
    config, _ = load_config(finished)
    questions = Store(config.store).get(events[-1].stage).path / "questions.jsonl"  # type: ignore[union-attr]
    kept = questions.read_text()
    questions.unlink()
    with pytest.raises(FileNotFoundError):
        mirror.note(events[-1])
    questions.write_text(kept)
    assert main(["sync", *finished]) == 0
    check_tree(finished)


def test_two_launchers_of_one_study_write_each_run_once(finished: list[str]) -> None:
    first, second = open_mirror(finished, []), open_mirror(finished, [])
    for event in ends(finished):
        first.note(event)
        second.note(event)
    assert first.finish(ok=True) == second.finish(ok=True)
    check_tree(finished)


@pytest.mark.slow
def test_the_password_of_a_server_is_in_nothing_that_is_kept_or_said(
    finished: list[str], server: TrackingServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.start()
    study = [*finished, f"tracking_uri={server.uri.replace('//', '//me:hunter2@')}"]
    assert main(["report", *study]) == 2
    assert "USER:PASSWORD@127.0.0.1" in capfd.readouterr().err
    assert main(["sync", *study]) == 0
    (command,) = {run.data.tags["command"] for run in runs_of(study) if run.data.tags["kind"] == "study"}
    assert command.endswith(f"tracking_uri={server.uri.replace('//', '//USER:PASSWORD@')}")
    server.stop()
    assert main(["report", *study]) == 2
    assert main(["sync", *study]) == 1
    assert "hunter2" not in "".join(capfd.readouterr())
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []


@pytest.mark.slow
def test_two_studies_start_at_once_on_a_store_whose_database_neither_has_made(
    finished: list[str], tmp_path: Path
) -> None:
    (tmp_path / "out" / "mlflow.db").unlink()
    command = [sys.executable, "-m", "experiments", "sync", *finished]
    one, other = (
        subprocess.Popen([*command, f"study.scale_rules={rules}"], stderr=subprocess.PIPE, text=True)
        for rules in ("[published]", "[published,searched]")
    )
    for process in (one, other):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert len({run.info.run_id for run in runs_of(finished) if run.data.tags["kind"] == "study"}) == 2


def test_a_damaged_database_is_one_line_and_stays_as_it_is(
    finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "out" / "mlflow.db"
    database.write_bytes(database.read_bytes()[:5000])
    for command in (["run", *finished], ["sync", *finished], ["report", *finished], ["ui", finished[-1]]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be read as MLflow's database ((sqlite3.DatabaseError) database disk image is malformed)" in line
        assert "move a damaged file away: hope sync writes the runs anew" in line
    assert database.stat().st_size == 5000


def test_a_deleted_experiment_is_a_mistake_before_a_run_and_lets_one_that_runs_go_on(
    finished: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    mirror = open_mirror(finished, told)
    mirror.open()
    client = MlflowClient(load_config(finished)[0].tracking)
    experiment = client.get_experiment_by_name("smoke").experiment_id
    client.delete_experiment(experiment)
    for event in ends(finished):
        mirror.note(event)
    assert mirror.finish(ok=True) is None
    assert len(told) == 1
    for command in ("sync", "report"):
        assert main([command, *finished]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            f"'smoke' was deleted in MLflow; restore it (mlflow experiments restore --experiment-id {experiment}"
            in line
        )
    client.restore_experiment(experiment)
    assert main(["sync", *finished]) == 0
    check_tree(finished)


def test_a_sync_of_what_never_ran_says_so_and_writes_nothing(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", *small]) == 2
    assert "holds nothing of study 'smoke'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
