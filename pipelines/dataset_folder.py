"""A training data set that lies in a folder: LLaVA-Video-178K, LLaMA-Factory's sharegpt, or JSON lines.

Its identity is its content, not its place: the record files whole, and of each medium its name and size. Media are not
read at plan time: that takes hours. The preprocess stage keys them by their bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.benchmarks.source import ABSENT, digest
from pipelines.data_stages import DATASET, frames_stage
from pipelines.datasets import Dataset, check_quarantine, read_dataset
from pipelines.engine import Artifact, Stage, StageConfig
from pipelines.preprocess import MediaSource, PreprocessPlacement, path_below
from pipelines.video.budget import FrameBudget


@dataclass(frozen=True)
class FolderDataset:
    """Record files below `root` that match the globs `files`.

    Media paths are absolute, or relative to their record file's folder.
    `num_samples` is what a plan reckons with. The frame budget is of one video.
    """

    kind: Literal["folder"]
    name: str
    root: str | None
    files: tuple[str, ...]
    num_samples: int
    quarantine_limit: float
    fps: float
    max_frames: int
    total_pixels: int

    @property
    def folder(self) -> Path:
        """`root` in full: media may be named by absolute paths, and those below it are told by theirs."""
        return Path(self.root or "").resolve()

    def record_files(self) -> list[str]:
        """The matching files, sorted, as paths below the root; none where the folder is not there.

        Raises ValueError for a pattern that is none below the root.
        """
        for pattern in self.files:
            if not pattern or Path(pattern).is_absolute():
                raise ValueError(f"dataset.files has {pattern!r}; give patterns below dataset.root, as in '*.json'")
        if self.root is None or not Path(self.root).is_dir():
            return []
        found = {path for pattern in self.files for path in Path(self.root).glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.root).as_posix() for path in found)


@dataclass(frozen=True)
class FolderIdentity:
    name: str
    content: str
    quarantine_limit: float


def folder_stages(data: FolderDataset, budget: FrameBudget, placement: PreprocessPlacement) -> tuple[Stage, Stage]:
    """The stage that checks the folder, and the one that decodes its media; ids are "dataset/PATH"."""
    dataset = Stage(
        name="dataset",
        code_version=1,
        run=check,
        config=StageConfig(FolderIdentity(data.name, content(data), data.quarantine_limit), data),
        label=f"check data set {data.name}",
    )
    frames = frames_stage(
        MediaSource(name=DATASET, records=tuple(data.record_files())),
        budget,
        placement,
        inputs={"records": dataset},
        root=str(data.folder),
        quarantine_limit=data.quarantine_limit,
        label="decode videos",
    )
    return dataset, frames


def content(data: FolderDataset) -> str:
    """The digest of the record files and of the names and sizes of their media; "absent" without the folder."""
    if not (files := data.record_files()):
        return ABSENT
    root = data.folder
    media = {item.path for name in files for record in _read(root / name).records for item in record.media}
    return digest(root, [root / name for name in files], {path_below(root, path) for path in media})


def check(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Count the usable records and write `quarantine.jsonl`, a line for each other one with its reason.

    Raises ValueError when more than the share quarantine_limit is unusable, or the folder is not what was planned with.
    """
    data: FolderDataset = config.placement
    if content(data) != config.identity.content:
        raise ValueError(f"{data.root} has changed since the study was planned; run it again")
    unusable: list[dict[str, Any]] = []
    reasons: list[str] = []
    total = 0
    for name in data.record_files():
        found = _read(data.folder / name)
        unusable += [{"file": name, **asdict(entry)} for entry in found.quarantined]
        reasons += [f"{name} {entry}" for entry in found.quarantined]
        total += len(found.records) + len(found.quarantined)
    check_quarantine(data.root, reasons, total, data.quarantine_limit)
    lines = "".join(json.dumps(entry) + "\n" for entry in unusable)
    (out_dir / "quarantine.jsonl").write_text(lines, encoding="utf-8")
    return {"records": total, "quarantined": len(unusable)}


def _read(path: Path) -> Dataset:
    return read_dataset(path, media_root=path.parent)
