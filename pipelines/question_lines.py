"""The file of an evaluation: one JSON line a question, there as soon as it is answered, whatever kills the process."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """What an earlier attempt wrote, nothing if there was none. A line that was torn is cut off the file."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines again, each once it is written."""
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield line
