"""What a study says of its data: how far it is decoded, and which records it lost."""

import io
import json
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console

from experiments.compose import load_config
from experiments.grid import build_grid
from experiments.progress import Progress, doing
from experiments.tracking import Tracker
from pipelines.decode_progress import progress_path, progress_writer
from pipelines.engine import Artifact, Event, EventKind, PlannedStage, State, Store

LOST = {"source": "dataset", "file": "train.json", "line": 7, "record": "00005", "reason": "no such video: a.mp4"}


def frames_artifact(folder: Path, fingerprint: str) -> Artifact:
    """What a preprocess stage leaves that had to leave out one of its 64 records."""
    folder.mkdir()
    (folder / "quarantined_records.jsonl").write_text(json.dumps(LOST) + "\n")
    return Artifact("frames", fingerprint, folder, {"records": 64, "quarantined_records": 1})


def test_lost_records_are_in_the_study_run_with_their_line_and_reason(small: list[str], tmp_path: Path) -> None:
    config, _ = load_config(small)
    grid = build_grid(config)
    store = Store(Path(config.store))
    store.prepare()
    tracker = Tracker(config, grid, store, resolved="", command="hope run")
    artifact = frames_artifact(tmp_path / "frames", grid.frames.fingerprint)
    for cached in (False, True):
        tracker.record(grid.frames, artifact, cached=cached)
    client = MlflowClient(config.tracking)
    metrics = client.get_run(tracker.study_run_id).data.metrics
    assert (metrics["data/quarantined"], metrics["data/records"]) == (1, 64)
    assert len(client.get_metric_history(tracker.study_run_id, "data/records")) == 1
    listed = client.download_artifacts(tracker.study_run_id, "data/quarantine.json", str(tmp_path))
    assert json.loads(Path(listed).read_text()) == [LOST]


def test_the_end_of_the_decoding_tells_how_many_records_were_lost(small: list[str], tmp_path: Path) -> None:
    grid = build_grid(load_config(small)[0])
    console = Console(file=io.StringIO(), width=200)
    planned = PlannedStage(grid.frames, grid.frames.fingerprint, State.MISSING, None)
    with Progress([planned], slots=2, console=console) as progress:
        artifact = frames_artifact(tmp_path / "frames", grid.frames.fingerprint)
        progress.on_event(Event(EventKind.FINISHED, grid.frames, artifact=artifact))
    assert "finished decode videos: 1 of 64 records set apart" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_decoding_stage_shows_a_bar_and_the_time_left(small: list[str]) -> None:
    stage = build_grid(load_config(small)[0]).frames
    assert doing(stage) == "decode videos"
    write = progress_writer(progress_path(stage.config))
    write(0, 64)
    assert doing(stage) == "decode videos .................... 0 of 64"
    write(64, 64)
    assert doing(stage) == "decode videos #################### 64 of 64, about 0 s left"
