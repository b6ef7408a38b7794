"""Identity of a stage: a value becomes a JSON payload, the payload a fingerprint, two payloads a field-level diff."""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


class NotEncodable(ValueError):
    """A value has no stable identity; the message names its field and the remedy."""


class Absent(enum.Enum):
    """What a diff shows on the side that does not have the field."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent.ABSENT
# Metadata of a dataclass field that came after artifacts had been stored: at its default it is no part of the identity.
ADDED_LATER = {"added_later": True}


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field that differs between two payloads."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old!r} -> {self.new!r}"


REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (PurePath, "a path is placement: put it in the placement half, and a content hash in the identity half"),
    ((set, frozenset), "a set has no order: use a sorted tuple"),
    ((bytes, bytearray), "use a hex string or a content hash"),
    (type, "name it with a string or an Enum"),
)


def encode(value: Any, path: str = "config") -> Any:
    """Turn a value into JSON data that is equal for equal values.

    Frozen dataclasses go field by field under their class name ("$type"), without those ADDED_LATER that have their
    default, so that what was stored before them is still found; tuples and lists are the same thing; a float with an
    integral value is that integer, so that `fps: 2` and `fps: 2.0` are one stage.
    Raises NotEncodable, which names the field, for anything whose identity is not its value.
    """
    if isinstance(value, enum.Enum):
        if isinstance(value, str | int):
            return encode(value.value, path)
        return {"$type": type(value).__name__, "name": value.name}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotEncodable(f"{path} is {value}, which equals nothing or has no JSON form: use None or a number")
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, tuple | list):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, path): encode(item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise NotEncodable(f"{path} is a mutable dataclass {type(value).__name__}: declare it frozen=True")
        fields = {
            f.name: encode(getattr(value, f.name), f"{path}.{f.name}")
            for f in dataclasses.fields(value)
            if not ("added_later" in f.metadata and getattr(value, f.name) == f.default)
        }
        return {"$type": type(value).__name__, **fields}
    raise NotEncodable(f"{path} is a {type(value).__name__} and has no stable identity: {_remedy(value)}")


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str) or key.startswith("$"):
        raise NotEncodable(f"{path} has the key {key!r}: use string keys that do not start with '$'")
    return str(key)


def _remedy(value: Any) -> str:
    for kind, remedy in REMEDIES:
        if isinstance(value, kind):
            return remedy
    if callable(value):
        return "name the function with a string or an Enum"
    return "use str, int, float, bool, None, an Enum, a tuple, a dict with string keys or a frozen dataclass of these"


def fingerprint(payload: Any) -> str:
    """Return the sha256 hex digest of the payload's canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def diff(old: Any, new: Any, path: str = "") -> list[Difference]:
    """List the fields in which two payloads differ, in the order of the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*new, *(key for key in old if key not in new)]
        pairs = [(f"{path}.{key}" if path else key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list):
        pairs = [
            (f"{path}[{i}]", old[i] if i < len(old) else ABSENT, new[i] if i < len(new) else ABSENT)
            for i in range(max(len(old), len(new)))
        ]
    else:
        # True == 1 in Python, but they are two payloads.
        same = old == new and isinstance(old, bool) == isinstance(new, bool)
        return [] if same else [Difference(path, old, new)]
    return [difference for name, a, b in pairs for difference in diff(a, b, name)]
