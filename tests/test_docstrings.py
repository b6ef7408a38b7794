"""What docstrings have in code type is there: a parameter renamed in a signature is renamed in its docstring."""

import ast
import re
from pathlib import Path

from tests.pages import ROOT

PACKAGES = ("hope_core", "pipelines", "experiments", "reports")
# Notation, patterns and examples that are no names of the code.
NOTATION = {"a", "with", "hope", "prepare_NAME", "fixed_2", "temporal_low"}


def unknown_names(sources: dict[str, str]) -> list[str]:
    """Names in code type in docstrings that neither their module has outside docstrings nor any module defines."""
    defined = {Path(path).stem for path in sources} | NOTATION
    words: dict[str, set[str]] = {}
    docs: list[tuple[str, str, str]] = []
    for path, source in sources.items():
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                docs.append((path, getattr(node, "name", "module"), text))
                first, last = node.body[0].lineno, node.body[0].end_lineno or 0
                lines[first - 1 : last] = [""] * (last - first + 1)
        words[path] = set(re.findall(r"\w+", "\n".join(lines)))
    return [
        f"{path} {name}: `{word}`"
        for path, name, text in docs
        for word in re.findall(r"`([A-Za-z_]\w*)`", text)
        if word not in words[path] and word not in defined
    ]


def test_names_in_docstrings_are_names_of_the_code() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert unknown_names(sources) == []


def test_a_parameter_that_was_renamed_is_found_in_its_docstring() -> None:
    source = 'def f(new_name):\n    """Double `old_name`, which `f` takes as `new_name`."""\n    return 2 * new_name\n'
    assert unknown_names({"m.py": source}) == ["m.py f: `old_name`"]
