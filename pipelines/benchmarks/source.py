"""The files of a benchmark that lies in a folder: reading its annotation, and the digest of what it holds.

The digest is the sha256 of every annotation file's content and of the name and size of every medium it names. Media
are not read: hashing 900 long videos takes an hour and planning must take seconds, and a video that is exchanged for
another of exactly the same size is rarer than a folder that is read at every plan. Decoding does hash their content.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.datasets import raw_records

ABSENT = "absent"


def annotation_files(root: Path, pattern: str) -> list[Path]:
    """The files that the glob pattern names, sorted; none where the folder or the files are missing."""
    return sorted(path for path in root.glob(pattern) if path.is_file()) if root.is_dir() else []


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Each record of a .json array, a .jsonl or a .parquet file with its line or row, from 1.

    A line that is not JSON is given as its error. Raises ValueError for a file that cannot be read at all.
    """
    if path.suffix != ".parquet":
        yield from raw_records(path)
        return
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from None
    yield from enumerate(rows, start=1)


def digest(root: Path, annotations: Sequence[Path], media: Iterable[str]) -> str:
    """The content digest; `media` are paths below `root`, in any order, each counted once."""
    held: dict[str, Any] = {"annotations": {}, "media": {}}
    for path in annotations:
        with path.open("rb") as file:
            held["annotations"][path.relative_to(root).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    for name in set(media):
        held["media"][name] = _size(root / name)
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int | str:
    """The size of a file, ABSENT for what is none or cannot be looked up, such as a name too long to be one."""
    try:
        return path.stat().st_size if path.is_file() else ABSENT
    except OSError:
        return ABSENT
