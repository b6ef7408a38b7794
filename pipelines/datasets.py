"""Question records."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Media:
    """One file that a record shows: kind is "image" or "video"."""

    kind: str
    path: Path
