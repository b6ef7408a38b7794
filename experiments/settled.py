"""What tells a finished study run again that nothing is left to do, without MLflow, whose import takes seconds.

sync/<study and server>.settled    what the last whole run left: its cells, MLflow's database and a digest of its runs
reports/<study>.made_of            a digest of what the report beside it was made of, and of its own files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.compose import CONF
from pipelines.engine import Store, fingerprint
from pipelines.engine.store import write_json

if TYPE_CHECKING:
    from experiments.config import Config
    from experiments.grid import Grid
    from experiments.study import Study

SQLITE, SQLITE_HEADER_BYTES = "sqlite:///", 100
# What a report is made with, besides the runs that it is made of.
REPORT_SOURCES = (CONF.parent / "reports", CONF / "reference")


def sync_key(config: Config, grid: Grid) -> str:
    """Names one study's runs on one tracking server."""
    return fingerprint({"grid": grid.fingerprint, "server": config.tracking})[:16]


def sync_file(store: Store, key: str, part: str) -> Path:
    """A file of the store about what a tracking server was told of a study."""
    folder = store.root / "sync"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}.{part}"


def database_state(tracking: str) -> list[str] | None:
    """What changes whenever MLflow's local database is written, replaced or deleted; None for a tracking server.

    SQLite counts the writes in its file's header; the time tells a file that was put in the place of another.
    """
    if not tracking.startswith(SQLITE):
        return None
    path = Path(tracking.removeprefix(SQLITE))
    try:
        with path.open("rb") as file:
            return [file.read(SQLITE_HEADER_BYTES).hex(), str(path.stat().st_mtime_ns)]
    except FileNotFoundError:
        return []


def settle(study: Study, *, database: list[str] | None, runs: str) -> None:
    """Note that MLflow has every selected cell: `runs` is the digest of its runs, read after the state `database`."""
    write_json(_settled_file(study), {"cells": study.selected.fingerprint, "database": database, "runs": runs})


def settled_runs(study: Study) -> str | None:
    """The digest of the study's runs, where MLflow has every selected cell and was not written to since.

    None where only MLflow can tell: on a server, when its database has changed or is gone, or the file is damaged.
    """
    path = _settled_file(study)
    database = database_state(study.config.tracking)
    if not database or not path.is_file():
        return None
    try:
        left = json.loads(path.read_text())
    except ValueError:  # cut off, by a full disk or a lost machine; the next whole run writes it anew
        return None
    return left["runs"] if (left["cells"], left["database"]) == (study.selected.fingerprint, database) else None


def _settled_file(study: Study) -> Path:
    return sync_file(study.store, sync_key(study.config, study.grid), "settled")


def is_reported(study: Study, runs: str) -> bool:
    """Whether the report was made of these very runs, and none of its files is missing or edited."""
    stamp = _report_stamp(study)
    try:
        return stamp.is_file() and stamp.read_text() == _report_digest(study, runs)
    except FileNotFoundError:  # another launcher makes it now
        return False


def note_reported(study: Study, runs: str) -> None:
    """Note that the report that lies there now was made of these runs."""
    _report_stamp(study).write_text(_report_digest(study, runs))


def _report_stamp(study: Study) -> Path:
    return study.config.report_dir.with_name(f"{study.config.report_dir.name}.made_of")


def _report_digest(study: Study, runs: str) -> str:
    digest = hashlib.sha256(json.dumps([study.grid.fingerprint, runs]).encode())
    for folder in (*REPORT_SOURCES, study.config.report_dir):
        for path in _files(folder.rglob("*")):
            digest.update(f"\n{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.parent.name != "__pycache__")
