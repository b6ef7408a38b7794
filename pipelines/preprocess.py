"""The preprocess stage: every video of a study decoded once, on Ray Data, into memory-mapped patch rows."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.datasets import Media, check_quarantine, read_dataset
from pipelines.decode_progress import Progress, progress_path, progress_writer
from pipelines.engine.stage import Artifact, StageConfig
from pipelines.video.budget import FrameBudget
from pipelines.video.decode import DECODERS
from pipelines.video.frames import Failure, Frames, cache_folder, from_json, read_cache
from pipelines.video.worker import DecodeProcess

# Files of one Ray Data block. A lost node costs a block per worker and the progress moves once a block, but each block
# is a Ray task, which weighs where films are short. They are smaller where files are few: no worker is long alone.
FILES_PER_BLOCK, LEAST_BLOCKS_PER_WORKER = 8, 8
QUARANTINED_RECORDS = "quarantined_records.jsonl"
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}

Job = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class MediaSource:
    """What to decode of one input: the media of its record files, and the files that match glob patterns.

    Media paths are relative to their record file's folder. `content`: a digest of what the source holds, where it is no
    stage's artifact.
    """

    name: str
    records: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class PreprocessIdentity:
    """What a preprocess artifact is identified by, beside its inputs."""

    budget: FrameBudget
    sources: tuple[MediaSource, ...]
    quarantine_limit: float = 0.01
    decoders: str = DECODERS


@dataclass(frozen=True, kw_only=True)
class PreprocessPlacement:
    """Where and how it runs. `roots` are the folders of sources that are no stage's artifact."""

    cache_dir: str
    num_workers: int
    timeout_s: float = 300.0
    roots: Mapping[str, str] = field(default_factory=dict)


def run(config: StageConfig, inputs: Mapping[str, Artifact], out_dir: Path) -> dict[str, Any]:
    """The stage: decode the media of all sources; ids are `media_id`s.

    `quarantined_records.jsonl` names each record that is left out, for itself or for one of its media, with its line
    and the reason; in the result, `records` counts all of them and the files that patterns matched.
    Raises ValueError when a larger share than quarantine_limit of a source's records, or of all media, is unusable.
    """
    identity, placement = config.identity, config.placement
    entries: list[Entry] = []
    media: dict[str, Media] = {}
    for source in identity.sources:
        root = _source_root(source.name, inputs, placement)
        for entry in _entries(source, root, identity.quarantine_limit):
            entries.append(entry)
            media.update(entry.media)
    done = preprocess_media(
        media,
        identity.budget,
        out_dir,
        cache_dir=Path(placement.cache_dir),
        num_workers=placement.num_workers,
        timeout_s=placement.timeout_s,
        on_progress=progress_writer(progress_path(config)),
    )
    reasons = [f"{key}: {reason}" for key, reason in done.quarantined.items()]
    check_quarantine("preprocess", reasons, len(media), identity.quarantine_limit)
    left_out = [line for entry in entries if (line := _left_out(entry, done.quarantined))]
    _write_lines(out_dir / QUARANTINED_RECORDS, left_out)
    return {
        **asdict(done),
        "quarantined": len(done.quarantined),
        "records": len(entries),
        "quarantined_records": len(left_out),
    }


def _source_root(name: str, inputs: Mapping[str, Artifact], placement: PreprocessPlacement) -> Path:
    """The folder of a source: an input of that name, else a root of the placement."""
    if name in inputs:
        return inputs[name].path
    if name not in placement.roots:
        known = ", ".join([*inputs, *placement.roots]) or "none"
        raise ValueError(f"no folder for the media source {name!r}; known are: {known}; add it to roots")
    return Path(placement.roots[name])


def media_id(source: str, root: Path, path: Path) -> str:
    """The id of a file in the artifact: its source and its path below the source's root."""
    return f"{source}/{path_below(root, path)}"


def path_below(root: Path, path: Path) -> str:
    """The path from `root` on; a path that does not lie there, as a whole."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@dataclass(frozen=True)
class Preprocessed:
    """What one call did. `decoded` counts the files decoded now, `reused` those that the cache had."""

    num_media: int
    decoded: int
    reused: int
    quarantined: dict[str, str]
    decoders: dict[str, int]
    num_frames: int


def preprocess_media(
    media: Mapping[str, Media],
    budget: FrameBudget,
    out_dir: Path,
    *,
    cache_dir: Path,
    num_workers: int,
    timeout_s: float = 300.0,
    on_progress: Progress = lambda done, total: None,
) -> Preprocessed:
    """Write `index.jsonl`, `quarantine.jsonl` and the shards of all media (by id) to `out_dir`; see `open_frames`.

    What `cache_dir` holds for the same content, budget and decoders is linked, not decoded; what is decoded is in the
    cache at once, so a killed call loses only the files in flight. Decoding runs on Ray Data with `num_workers` actors
    of one CPU (0: in this process, without Ray); a file that takes over `timeout_s` seconds is killed and quarantined.
    The caller must not hold CPUs of the cluster that the actors need: a Ray task that calls this asks for 0 CPUs.
    """
    folder = cache_folder(cache_dir, budget)
    digests, quarantined = _hash_files(media)
    known = read_cache(folder)
    jobs = {
        key: Job(digest=key, kind=media[media_id].kind, path=str(media[media_id].path))
        for media_id, key in digests.items()
        if key not in known
    }
    done = total_known = len(set(digests.values()) & known.keys())
    total = total_known + len(jobs)
    on_progress(done, total)
    for entry in _decode_all(list(jobs.values()), folder, budget, num_workers, timeout_s):
        known[entry.digest] = entry
        done += 1
        on_progress(done, total)

    frames: dict[str, Frames] = {}
    for media_id, key in digests.items():
        entry = known[key]
        if isinstance(entry, Frames):
            frames[media_id] = entry
        else:
            quarantined[media_id] = entry.reason
    _write_artifact(out_dir, folder, frames, quarantined)
    return Preprocessed(
        num_media=len(media),
        decoded=len(jobs),
        reused=total_known,
        quarantined=quarantined,
        decoders=dict(Counter(entry.decoder for entry in frames.values())),
        num_frames=sum(entry.num_frames for entry in frames.values()),
    )


@dataclass(frozen=True)
class Entry:
    """One record of a file, or one file that a pattern matched: its media by id, or the reason that it has none."""

    source: str
    file: str
    line: int | None
    id: str
    media: Mapping[str, Media]
    reason: str | None = None


def _entries(source: MediaSource, root: Path, quarantine_limit: float) -> Iterator[Entry]:
    reasons, total = [], 0
    for name in source.records:
        path = root / name
        dataset = read_dataset(path, media_root=path.parent)
        for bad in dataset.quarantined:
            yield Entry(source.name, name, bad.line, bad.id, {}, bad.reason)
        for record in dataset.records:
            media = {media_id(source.name, root, item.path): item for item in record.media}
            yield Entry(source.name, name, record.line, record.id, media)
        reasons += [f"{name} {bad}" for bad in dataset.quarantined]
        total += len(dataset.records) + len(dataset.quarantined)
    check_quarantine(root, reasons, total, quarantine_limit)
    for pattern in source.files:
        paths = matching_files(root, pattern)
        if not paths:
            raise ValueError(f"no file matches {pattern!r} in the media source {source.name!r} ({root})")
        for path in paths:
            item = Media("image" if path.suffix.lower() in PICTURE_SUFFIXES else "video", path)
            key = media_id(source.name, root, path)
            yield Entry(source.name, pattern, None, key, {key: item})


def matching_files(root: Path, pattern: str) -> list[Path]:
    """The paths below `root` that a glob pattern names, sorted; neither folders nor what a file manager leaves there.

    A link that leads nowhere is a file that cannot be read, and is given: what is missing is to be seen.
    """
    return sorted(path for path in root.glob(pattern) if not path.name.startswith(".") and not path.is_dir())


def _left_out(entry: Entry, quarantined: Mapping[str, str]) -> dict[str, Any] | None:
    """The line of `quarantined_records.jsonl`, if the entry cannot be used."""
    reasons = [f"{key}: {quarantined[key]}" for key in entry.media if key in quarantined]
    if entry.reason is None and not reasons:
        return None
    about = {"source": entry.source, "file": entry.file, "line": entry.line, "record": entry.id}
    return about | {"reason": entry.reason or reasons[0]}


def _hash_files(media: Mapping[str, Media]) -> tuple[dict[str, str], dict[str, str]]:
    """Content digest of each file by id (a picture and a video of the same bytes differ), and the unreadable ones."""

    digests: dict[str, str] = {}
    unreadable: dict[str, str] = {}

    def hash_file(media_id: str) -> None:
        item = media[media_id]
        try:
            if not item.path.is_file():  # a pipe or a device would never end
                raise FileNotFoundError(errno.ENOENT, "no such file", str(item.path))
            with item.path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            unreadable[media_id] = f"UnreadableFile: {error.strerror}: {item.path}"
        else:
            digests[media_id] = f"{item.kind}-{content}"

    with ThreadPoolExecutor(max_workers=8) as threads:
        for _ in threads.map(hash_file, media):
            pass
    return {media_id: digests[media_id] for media_id in media if media_id in digests}, unreadable


def _decode_all(
    jobs: Sequence[Job], folder: Path, budget: FrameBudget, num_workers: int, timeout_s: float
) -> Iterator[Frames | Failure]:
    if not jobs:
        return
    if num_workers == 0:
        process = DecodeProcess(folder, budget, timeout_s)
        try:
            for job in jobs:
                yield process.decode(**job)
        finally:
            process.close()
        return
    import ray.data  # Ray reads its environment at import, and the runner that starts it sets that first

    num_blocks = min(len(jobs), max(num_workers * LEAST_BLOCKS_PER_WORKER, math.ceil(len(jobs) / FILES_PER_BLOCK)))
    outcomes = ray.data.from_items(list(jobs), override_num_blocks=num_blocks).map_batches(
        DecodeActor,
        fn_constructor_args=(folder, budget, timeout_s),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, num_blocks)),
        num_cpus=1,
    )
    outcomes.context.enable_progress_bars = False
    for row in outcomes.iter_rows():
        yield from_json(json.loads(row["outcome"]))


class DecodeActor:
    """One Ray Data worker: a decoding process and a shard of its own."""

    def __init__(self, folder: Path, budget: FrameBudget, timeout_s: float) -> None:
        self._process = DecodeProcess(folder, budget, timeout_s)

    def __call__(self, jobs: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = zip(jobs["digest"], jobs["kind"], jobs["path"], strict=True)
        return {"outcome": [json.dumps(asdict(self._process.decode(*map(str, row)))) for row in rows]}


def _write_artifact(out_dir: Path, folder: Path, frames: Mapping[str, Frames], quarantined: Mapping[str, str]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for shard in sorted({entry.shard for entry in frames.values()}):
        _link(folder / f"{shard}.npy", out_dir / f"{shard}.npy")
    _write_lines(out_dir / "index.jsonl", ({"id": key, **asdict(entry)} for key, entry in frames.items()))
    _write_lines(out_dir / "quarantine.jsonl", ({"id": key, "reason": why} for key, why in quarantined.items()))


def _link(source: Path, target: Path) -> None:
    """Hard-link a shard; copy it where the cache is on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
