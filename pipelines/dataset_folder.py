"""A training data set that lies in a folder: LLaVA-Video-178K, LLaMA-Factory's sharegpt, or JSON lines.

Its identity is its content, not its place: the record files whole, and of each medium its name and size. Media are not
read at plan time: that takes hours. The preprocess stage keys them by their bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.datasets import Dataset, check_quarantine, read_dataset
from pipelines.engine import Artifact, Resources, Stage, StageConfig
from pipelines.preprocess import MediaSource, PreprocessIdentity, PreprocessPlacement
from pipelines.preprocess import run as preprocess
from pipelines.video.budget import FrameBudget

ABSENT = "absent"


@dataclass(frozen=True)
class FolderDataset:
    """Record files below `root` that match the globs `files`; media paths are relative to their record file's folder.

    `num_samples` is what a plan reckons with before the folder is there. The frame budget is of one video.
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

    def record_files(self) -> list[str]:
        """The matching files, sorted, as paths below the root; none where the folder is not there."""
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
    files = data.record_files()
    dataset = Stage(
        name="dataset",
        code_version=1,
        run=check,
        config=StageConfig(FolderIdentity(data.name, content(data), data.quarantine_limit), data),
        label=f"check data set {data.name}",
    )
    folders: dict[str, list[str]] = {}
    for name in files:
        folders.setdefault(Path(name).parent.as_posix(), []).append(Path(name).name)
    sources = {("dataset" if folder == "." else f"dataset/{folder}"): folder for folder in sorted(folders)}
    frames = Stage(
        name="frames",
        code_version=2,
        run=preprocess,
        config=StageConfig(
            PreprocessIdentity(
                budget=budget,
                sources=tuple(
                    MediaSource(name=name, records=tuple(folders[folder])) for name, folder in sources.items()
                ),
                quarantine_limit=data.quarantine_limit,
            ),
            PreprocessPlacement(
                **{
                    **asdict(placement),
                    "roots": {name: str(Path(data.root or "") / folder) for name, folder in sources.items()},
                }
            ),
        ),
        inputs={"records": dataset},
        # Ray Data's actors hold the CPUs; the task that drives them must not.
        resources=Resources(num_cpus=0),
        label="decode videos",
    )
    return dataset, frames


def content(data: FolderDataset) -> str:
    """The digest of the record files and of the names and sizes of their media; "absent" without the folder."""
    if not (files := data.record_files()):
        return ABSENT
    digest = hashlib.sha256()
    sizes: dict[str, int] = {}
    for name in files:
        path = Path(data.root or "") / name
        digest.update(f"{name}\n".encode() + path.read_bytes())
        for record in _read(path).records:
            for item in record.media:
                key = f"{Path(name).parent.as_posix()}:{item.path.relative_to(path.parent).as_posix()}"
                sizes[key] = sizes.get(key) or item.path.stat().st_size
    digest.update(json.dumps(sizes, sort_keys=True).encode())
    return digest.hexdigest()


def check(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """Count the usable records and write `quarantine.jsonl`, a line for each other one with its reason.

    Raises ValueError when more than the share quarantine_limit is unusable, or the folder is not what was planned with.
    """
    data: FolderDataset = config.placement
    if content(data) != config.identity.content:
        raise ValueError(f"{data.root} has changed since the study was planned; run it again")
    unusable: list[dict[str, Any]] = []
    total = 0
    for name in data.record_files():
        found = _read(Path(data.root or "") / name)
        unusable += [{"file": name, **asdict(entry)} for entry in found.quarantined]
        total += len(found.records) + len(found.quarantined)
    reasons = [f"{entry['file']} line {entry['line']} ({entry['id']}): {entry['reason']}" for entry in unusable]
    check_quarantine(data.root, reasons, total, data.quarantine_limit)
    lines = "".join(json.dumps(entry) + "\n" for entry in unusable)
    (out_dir / "quarantine.jsonl").write_text(lines, encoding="utf-8")
    return {"records": total, "quarantined": len(unusable)}


def _read(path: Path) -> Dataset:
    return read_dataset(path, media_root=path.parent, quarantine_limit=1.0)
