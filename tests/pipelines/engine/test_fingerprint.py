"""Identity: equal values are one stage, different values are two, what has no identity is refused."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine import ABSENT, Difference, NotEncodable, diff, encode, fingerprint
from pipelines.engine.fingerprint import ADDED_LATER
from tests.pipelines.engine.conftest import ROOT


class Sampler(StrEnum):
    UNIFORM = "uniform"


class Colour(Enum):
    RED = 1


@dataclass(frozen=True)
class Fixed:
    scale: float


@dataclass(frozen=True)
class Dynamic:
    scale: float


@dataclass(frozen=True)
class Budget:
    fps: float = 2.0
    sampler: Sampler = Sampler.UNIFORM
    scaling: Fixed | Dynamic = Fixed(1.0)
    contexts: tuple[int, ...] = (8, 16)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Mutable:
    fps: float = 2.0


@dataclass(frozen=True)
class Recipe:
    lr: float


@dataclass(frozen=True)
class LaterRecipe:
    lr: float
    held_out: int | None = field(default=None, metadata=ADDED_LATER)


def test_a_field_added_later_changes_an_identity_only_where_it_is_set() -> None:
    before = encode(Recipe(1.0)) | {"$type": "LaterRecipe"}
    assert encode(LaterRecipe(1.0)) == before
    assert encode(LaterRecipe(1.0, held_out=3)) == before | {"held_out": 3}


def test_a_config_is_encoded_field_by_field() -> None:
    assert encode(Budget()) == {
        "$type": "Budget",
        "fps": 2,
        "sampler": "uniform",
        "scaling": {"$type": "Fixed", "scale": 1},
        "contexts": [8, 16],
        "extra": {},
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (2, 2.0),
        (2**60, 2.0**60),
        ((1, 2), [1, 2]),
        ("uniform", Sampler.UNIFORM),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (0.0, -0.0),
    ],
)
def test_equal_values_have_one_fingerprint(one: Any, other: Any) -> None:
    assert fingerprint(encode(one)) == fingerprint(encode(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, "1"),
        (None, ""),
        (0.1, 0.1 + 1e-16),
        (Fixed(1.0), Dynamic(1.0)),
        ((1, 2), (2, 1)),
        ((1, (2,)), ((1,), 2)),
        (Colour.RED, 1),
        ({}, ()),
    ],
)
def test_different_values_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(encode(one)) != fingerprint(encode(other))


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (Path("/data/videos"), "content hash"),
        ({1, 2}, "sorted tuple"),
        (b"abc", "hex string"),
        (math.nan, "None"),
        (math.inf, "None"),
        (print, "name the function"),
        (lambda: 1, "name the function"),
        (Fixed, "string or an Enum"),
        (object(), "frozen dataclass"),
        (np.float32(0.5), "use str, int, float"),
        (np.zeros(2), "use str, int, float"),
        (Mutable(), "frozen=True"),
        ({1: 2}, "string keys"),
        ({"$type": "Fixed"}, "'$'"),
    ],
)
def test_what_has_no_identity_is_refused_in_one_line_with_its_field_and_the_remedy(value: Any, remedy: str) -> None:
    with pytest.raises(NotEncodable) as caught:
        encode(Budget(extra={"odd": (1, value)}))
    message = str(caught.value)
    assert message.startswith("config.extra.odd[1]")
    assert remedy in message
    assert "\n" not in message


def test_a_fingerprint_is_the_same_in_every_process_and_release() -> None:
    # Stores hold these: if this value changes, every artifact of every user is lost.
    pinned = "f8d09de1548ad4d9b6f34eef10935ef50118976e4646774b8fb738428525d558"
    code = "from tests.pipelines.engine.test_fingerprint import *; print(fingerprint(encode(Budget())))"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert fingerprint(encode(Budget())) == other.stdout.strip() == pinned


def test_a_member_of_an_enum_is_its_name_under_its_class() -> None:
    assert encode(Colour.RED) == {"$type": "Colour", "name": "RED"}


def test_a_payload_that_json_has_no_form_for_gets_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"fps": math.nan})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain, plain)
def test_two_payloads_differ_exactly_when_their_fingerprints_do(one: Any, other: Any) -> None:
    a, b = encode(one), encode(other)
    assert (diff(a, b) == []) == (fingerprint(a) == fingerprint(b))


def test_a_diff_names_each_field_that_changed_came_or_went() -> None:
    old = encode(Budget(extra={"gone": 1}))
    new = encode(Budget(fps=1, scaling=Dynamic(0.5), contexts=(8, 32, 64), extra={"came": True}))
    assert diff(old, new) == [
        Difference("fps", 2, 1),
        Difference("scaling.$type", "Fixed", "Dynamic"),
        Difference("scaling.scale", 1, 0.5),
        Difference("contexts[1]", 16, 32),
        Difference("contexts[2]", ABSENT, 64),
        Difference("extra.came", ABSENT, True),
        Difference("extra.gone", 1, ABSENT),
    ]


def test_a_difference_reads_as_field_before_and_after() -> None:
    old, new = {"fps": 2, "contexts": [8, 16]}, {"fps": 1, "contexts": [8], "sampler": "uniform"}
    assert [str(difference) for difference in diff(old, new)] == [
        "fps: 2 -> 1",
        "contexts[1]: 16 -> (absent)",
        "sampler: (absent) -> 'uniform'",
    ]
