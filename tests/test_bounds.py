"""The versions that `make lowest` installs are the lower bounds of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOUNDED = [
    requirement
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    if requirement.specifier
]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): Version(version) for package, version in pairs}


@pytest.mark.parametrize("requirement", BOUNDED, ids=lambda requirement: requirement.name)
def test_the_lowest_version_is_the_lower_bound_and_the_pin_is_allowed(requirement):
    (lower,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
    lowest = pins("constraints-lowest.txt")[requirement.name.lower()]
    assert lowest.release[: len(lower.release)] == lower.release or requirement.name == "torch"
    assert pins("constraints.txt")[requirement.name.lower()] in requirement.specifier
