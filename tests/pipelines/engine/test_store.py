"""The store: complete artifacts or none, useful failures, and one clear line when its folder cannot be used."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.engine import LocalRunner, Store, StoreError, plan
from pipelines.engine.lease import this_owner
from tests.pipelines.engine.conftest import ROOT
from tests.pipelines.engine.toys import add, fail, nothing, toy


def test_a_record_holds_identity_result_inputs_and_where_it_comes_from(store: Store, desk: Path) -> None:
    base = toy(add, "base", desk, value=2)
    stage = toy(add, "sum", desk, value=3, inputs={"below": base}, label="the sum", work_units=4.0)
    LocalRunner(store, seed=11).run([stage])
    record = store.record("add", stage.fingerprint)
    assert record is not None
    assert record.payload == stage.payload
    assert record.result == {"value": 5}
    assert record.inputs == {"below": {"stage": "add", "fingerprint": base.fingerprint}}
    assert (record.label, record.work_units, record.attempt) == ("the sum", 4.0, 1)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert record.provenance["git_commit"] == (commit or None)
    assert record.provenance["argv"] == sys.argv
    assert record.provenance["seed"] == 11
    assert {"hope-lab", "torch", "ray"} <= record.provenance["versions"].keys()
    assert {"host", "cpu_count", "device", "started_at", "duration_s"} <= record.provenance["process"].keys()


def test_a_record_keeps_the_command_without_the_password_of_an_address(
    store: Store, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hope", "tracking_uri=http://me:p@ss@host:5000/x", "store=/data/a@b"])
    stage = toy(add, "a", desk)
    LocalRunner(store).run([stage])
    record = store.record("add", stage.fingerprint)
    assert record is not None
    assert record.provenance["argv"] == ["hope", "tracking_uri=http://USER:PASSWORD@host:5000/x", "store=/data/a@b"]


def test_an_artifact_gives_the_files_and_the_result(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk, value=7)
    assert store.get(stage) is None
    LocalRunner(store).run([stage])
    artifact = store.get(stage)
    assert artifact is not None
    assert artifact.result == {"value": 7}
    assert (artifact.path / "value.txt").read_text() == "7"
    assert list((store.root / "work" / "add").iterdir()) == []


def test_a_failure_tells_config_traceback_log_and_time_and_goes_when_the_stage_succeeds(
    store: Store, desk: Path
) -> None:
    stage = toy(fail, "a", desk)
    LocalRunner(store).run([stage])
    failure = store.failure(stage)
    assert failure is not None
    assert failure.error == "RuntimeError: no luck with a"
    assert "in fail" in failure.traceback
    assert failure.payload["config"]["key"] == "a"
    assert "no luck with a" in (store.root / failure.log).read_text()
    assert (failure.kind, failure.attempt) == ("error", 1)
    assert store.failures() == [failure]

    LocalRunner(store).run([replace(stage, run=nothing)])
    assert store.failure(stage) is None
    assert store.failures() == []


def test_of_two_that_publish_one_stage_the_first_stays(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    LocalRunner(store).run([stage])
    first = store.get(stage)
    record = store.record("add", stage.fingerprint)
    assert record is not None
    work = store.work_folder("add", stage.fingerprint, "late", resumable=False)
    with store.leases.acquire(stage.fingerprint, this_owner()) as lease:
        assert store.publish(replace(record, result={"value": -1}), work, lease) == first
    assert store.get(stage) == first
    assert not work.exists()


def test_a_machine_that_does_not_see_the_store_says_so(store: Store) -> None:
    with pytest.raises(StoreError, match="disk that all nodes share"):
        store.require()
    store.prepare()
    store.require()


def test_the_nearest_record_has_the_fewest_differences_and_of_several_is_the_newest(store: Store, desk: Path) -> None:
    older, newer, far = (toy(add, key, desk, value=value) for key, value in (("near", 1), ("near", 3), ("far", 9)))
    LocalRunner(store).run([older, newer, far])
    for age, stage in enumerate((far, newer, older)):
        os.utime(store.artifact_path(stage.name, stage.fingerprint), (100 - age, 100 - age))
    found = store.nearest(toy(add, "near", desk, value=2))
    assert found
    assert found.fingerprint == newer.fingerprint
    assert store.nearest(toy(fail, "near", desk)) is None


def test_reading_a_store_that_is_not_there_finds_nothing_and_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    assert [planned.state for planned in plan(store, [toy(add, "a", tmp_path)])] == ["missing"]
    assert store.failures() == []
    assert list(tmp_path.iterdir()) == []


def make_unusable(kind: str, tmp_path: Path) -> Path | str:
    root = tmp_path / "store"
    if kind == "file":
        root.write_text("a file")
    elif kind == "below a file":
        (tmp_path / "file").write_text("a file")
        return tmp_path / "file" / "store"
    elif kind == "newer format":
        root.mkdir()
        (root / "store.json").write_text('{"format": 99}')
    elif kind == "damaged":
        root.mkdir()
        (root / "store.json").write_text("{")
    elif kind == "someone's data":
        root.mkdir()
        (root / "thesis.tex").write_text("precious")
    elif kind == "url":
        return "s3://bucket/store"
    elif kind == "cannot be made":
        return Path("/proc/hope/store")  # not even root may write there
    return root


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("file", "give a folder"),
        ("below a file", "give a folder"),
        ("newer format", "update HoPE Lab"),
        ("damaged", "restore"),
        ("someone's data", "give a new folder"),
        ("url", "object stores are not supported"),
        ("cannot be made", "choose another folder"),
    ],
)
def test_an_unusable_store_is_one_line_with_the_remedy_and_nothing_is_written(
    kind: str, remedy: str, tmp_path: Path
) -> None:
    root = make_unusable(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=remedy) as caught:
        LocalRunner(Store(root)).run([toy(add, "a", tmp_path)])
    assert "\n" not in str(caught.value)
    assert str(root).removeprefix("s3:") in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_record_is_named_and_not_taken_for_a_missing_one(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    LocalRunner(store).run([stage])
    path = store.artifact_path("add", stage.fingerprint) / "record.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(StoreError, match="remove"):
        store.get(stage)


def test_store_files_are_json_that_other_tools_can_read(store: Store, desk: Path) -> None:
    stage = toy(add, "a", desk)
    LocalRunner(store).run([stage])
    text = (store.root / "artifacts" / "add" / stage.fingerprint / "record.json").read_text()
    assert json.loads(text)["fingerprint"] == stage.fingerprint
