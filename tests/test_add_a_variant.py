"""docs/add-a-variant.md as it is written: its class, line and entry put into a copy, and its commands run there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import main
from hope_core import designs, make_variant, variants
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "add-a-variant.md"
CLASS, LINE, ENTRY = blocks(PAGE, "python")
COMMANDS = [shlex.split(line) for line in blocks(PAGE, "")[0].splitlines()]
# Both commands in one process: importing torch takes longer than either.
RUN = """
import sys, pytest
from experiments.cli import main
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", *sys.argv[1:]]) or main(["variants"]))
"""


def put(path: Path, line: str, *, inside: str) -> None:
    """Add a line at the end of the first braces after `inside`."""
    before, found, rest = path.read_text(encoding="utf-8").partition(inside)
    indent = " " * (len(line) - len(line.lstrip()) - 4)
    body, brace, after = rest.partition(f"\n{indent}}}")
    assert found
    assert brace
    path.write_text(f"{before}{found}{body}\n{line.rstrip()}{brace}{after}", encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """hope_core and its tests with the page's variant; the other packages are those of the repository."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hope_core", tmp_path / "hope_core", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "hope_core", tmp_path / "tests" / "hope_core", ignore=ignored)
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
    with (tmp_path / "hope_core" / "designs.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + CLASS)
    put(tmp_path / "hope_core" / "variants.py", LINE, inside="_REGISTERED: ")
    put(tmp_path / "tests" / "hope_core" / "layouts.py", ENTRY, inside="spots.append(")
    return tmp_path


def test_one_class_one_line_and_one_entry_make_a_variant_that_conforms(copy: Path) -> None:
    (tests,) = (words[1:] for words in COMMANDS if words[0] == "pytest")
    done = subprocess.run(
        [sys.executable, "-c", RUN, *tests],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(copy), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ran = re.search(r"(\d+) passed, \d+ deselected", done.stdout)
    assert ran
    assert int(ran[1]) >= 8  # the conformance suite alone
    assert re.search(r"^centred_rope +centred +temporal_low +none$", done.stdout, re.MULTILINE)


def test_the_new_variant_is_a_name_that_studies_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(designs.POSITIONS, "centred", designs.Corner)  # taken away again after the test
    exec("from __future__ import annotations\n" + CLASS, vars(designs).copy())  # as the module begins
    ((name, parts),) = eval("{" + LINE.strip() + "}").items()
    new = make_variant(name, positions=parts[0], frequencies=parts[1], scaling=parts[2])
    monkeypatch.setitem(variants._VARIANTS, name, new)
    (plan,) = (words[1:] for words in COMMANDS if words[:2] == ["hope", "plan"])
    assert main([*plan, "--cells", f"store={tmp_path / 'out'}"]) == 0
    assert "centred_rope-s0/v_niah/64/equal" in capsys.readouterr().out
