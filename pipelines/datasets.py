"""Readers of question records: LLaVA-Video-178K JSON, LLaMA-Factory's sharegpt (both forms), plain JSON lines."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile("<image>|<video>")

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """One message; role is "system", "user" or "assistant", and each <image> or <video> in `text` is one medium."""

    role: str
    text: str


@dataclass(frozen=True)
class Media:
    """One file that a record shows; kind is "image" or "video"."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Record:
    """A conversation and its media, in the order of their placeholders; `line` is where it starts in its file."""

    id: str
    turns: tuple[Turn, ...]
    media: tuple[Media, ...]
    line: int = field(compare=False)


@dataclass(frozen=True)
class Quarantined:
    """A record that is left out: its line in the file, its id and the reason."""

    line: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line} ({self.id}): {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """What a file holds: usable records and the ones left out."""

    records: tuple[Record, ...]
    quarantined: tuple[Quarantined, ...]


class BadRecord(Exception):
    """One record cannot be used; the message is the reason."""


def read_dataset(path: Path, *, media_root: Path) -> Dataset:
    """Read a .json array or a .jsonl file of records; media paths are relative to `media_root`.

    The form is seen record by record: "conversations" with from/value (LLaVA-Video, sharegpt A), "messages" with
    role/content (sharegpt B), or "question" and "answer". Media are under image, images, video or videos, and a system
    prompt is a turn or the record's own "system". A record whose placeholders do not match its media, or whose file is
    missing, is left out. Where a file repeats an id, the later records get "#2", "#3" and so on. Raises ValueError for
    a file that is no such list of records.
    """
    records: list[Record] = []
    quarantined: list[Quarantined] = []
    name = unique_names()
    is_file = functools.cache(is_there)
    for line, raw in raw_records(path):
        record_id = name(str(raw["id"]) if isinstance(raw, Mapping) and "id" in raw else f"line-{line}")
        try:
            turns, media = _parse(raw, media_root)
            for item in media:
                if not is_file(item.path):
                    raise BadRecord(f"no such {item.kind}: {str(item.path)[:200]}")
            records.append(Record(record_id, turns, media, line))
        except BadRecord as error:
            quarantined.append(Quarantined(line, record_id, str(error)))
    return Dataset(tuple(records), tuple(quarantined))


def unique_names() -> Callable[[str], str]:
    """A function that gives each name back, and one that it has given already as "NAME#2", "NAME#3" and so on.

    Half characters, which no file can hold, come back as their codes.
    """
    times: dict[str, int] = {}

    def name(wanted: str) -> str:
        given = wanted = wanted.encode(errors="backslashreplace").decode()
        while given in times:  # which "NAME#2" itself may be
            times[wanted] += 1
            given = f"{wanted}#{times[wanted]}"
        times[given] = 1
        return given

    return name


def check_whole(text: str) -> None:
    """Raise BadRecord for half a character (of a surrogate pair), which no tokenizer takes."""
    if cut := re.search("[\ud800-\udfff]", text):
        raise BadRecord(f"BadText: half of a character, {cut[0]!a}; the text was cut there")


def is_there(path: Path) -> bool:
    """Whether the path is a file that can be looked up; a name too long for a file system (a data: URI) is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_quarantine(source: object, reasons: Sequence[str], total: int, limit: float) -> None:
    """Raise a one-line ValueError when more than the share `limit` of `total` is left out, naming the first."""
    if len(reasons) > limit * total:
        raise ValueError(
            f"{source}: {len(reasons)} of {total} are unusable, over the limit of {limit:.2%}; first: {reasons[0]}; "
            "repair them or raise quarantine_limit"
        )


def raw_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Each record with the line that it starts on."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from None
    return _json_lines(text) if path.suffix == ".jsonl" else _json_array(text, path)


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, error
            except RecursionError:
                yield number, json.JSONDecodeError("brackets nested too deeply", line, 0)


def _json_array(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Step through the array by hand: the json module does not say which line a record starts on."""
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    position = len(text) - len(text.lstrip())
    if text[position : position + 1] != "[":
        raise ValueError(f"{path} is not a JSON array of records; JSON lines need the suffix .jsonl")
    line = text.count("\n", 0, position) + 1
    position += 1
    while True:
        start = gap.match(text, position).end()  # type: ignore[union-attr]
        line += text.count("\n", position, start)
        if text[start : start + 1] == "]":
            return
        try:
            record, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {error.lineno} is not JSON ({error.msg}); the file is damaged there"
            ) from None
        except RecursionError:
            raise ValueError(f"{path} line {line} nests its brackets too deeply; the file is damaged there") from None
        yield line, record
        line += text.count("\n", start, position)


def _parse(raw: Any, media_root: Path) -> tuple[tuple[Turn, ...], tuple[Media, ...]]:
    if isinstance(raw, json.JSONDecodeError):
        raise BadRecord(f"not JSON: {raw.msg}")
    if not isinstance(raw, Mapping):
        raise BadRecord(f"a record is an object, not a {type(raw).__name__}")
    images = _paths(raw, "image", "images", media_root)
    videos = _paths(raw, "video", "videos", media_root)
    turns = _turns(raw, images, videos)
    if videos and not images:  # LLaVA-Video writes <image> for its video
        turns = [Turn(turn.role, turn.text.replace("<image>", "<video>")) for turn in turns]
    return tuple(turns), _in_text_order(turns, images, videos)


def _turns(raw: Mapping[str, Any], images: Sequence[Path], videos: Sequence[Path]) -> list[Turn]:
    if raw.get("tools") not in (None, "", "[]", []):
        raise BadRecord("'tools' are not written into prompts here; put them into the system turn")
    if "conversations" in raw:
        turns = [_turn(message, "from", "value") for message in _list(raw, "conversations")]
    elif "messages" in raw:
        turns = [_turn(message, "role", "content") for message in _list(raw, "messages")]
    elif "question" in raw and "answer" in raw:
        shown = "<image>" * len(images) + "<video>" * len(videos)
        question = str(raw["question"])
        text = question if PLACEHOLDER.search(question) or not shown else f"{shown}\n{question}"
        turns = [Turn("user", text), Turn("assistant", str(raw["answer"]))]
    else:
        raise BadRecord("none of conversations, messages, or question and answer is there")
    if raw.get("system") and all(turn.role != "system" for turn in turns):
        turns = [Turn("system", str(raw["system"])), *turns]
    for turn in turns:
        check_whole(turn.text)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRecord(f"turns do not go user, assistant, user, ..., assistant: {', '.join(spoken) or 'none'}")
    return turns


def _turn(message: Any, role_key: str, text_key: str) -> Turn:
    if not isinstance(message, Mapping) or not isinstance(message.get(text_key), str):
        raise BadRecord(f"a message needs {role_key!r} and a string {text_key!r}")
    role = message.get(role_key)
    if role not in ROLES:
        raise BadRecord(f"role {role!r} is none of {', '.join(ROLES)}")
    return Turn(ROLES[role], message[text_key])


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(raw[key], list):
        raise BadRecord(f"{key!r} is not a list")
    return raw[key]


def _paths(raw: Mapping[str, Any], singular: str, plural: str, media_root: Path) -> list[Path]:
    values = [value for key in (singular, plural) for value in _as_list(raw.get(key))]
    if not all(isinstance(value, str) and value for value in values):
        raise BadRecord(f"{plural} are not file names: {values!r}")
    return [media_root / value for value in values]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _in_text_order(turns: Sequence[Turn], images: Sequence[Path], videos: Sequence[Path]) -> tuple[Media, ...]:
    found = [(turn.role, mark) for turn in turns for mark in PLACEHOLDER.findall(turn.text)]
    if any(role == "assistant" for role, _ in found):
        raise BadRecord("a placeholder stands in an answer")
    for mark, paths in (("<image>", images), ("<video>", videos)):
        count = sum(other == mark for _, other in found)
        if count != len(paths):
            raise BadRecord(f"{count} {mark} in the text, but {len(paths)} such files")
    remaining = {"<image>": iter(images), "<video>": iter(videos)}
    return tuple(Media(mark.strip("<>"), next(remaining[mark])) for _, mark in found)
