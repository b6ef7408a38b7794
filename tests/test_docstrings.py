"""What docstrings have in code type is there: a parameter renamed in a signature is renamed in its docstring."""

import ast
import re
from pathlib import Path
from typing import Any

from tests.pages import ROOT

PACKAGES = ("hope_core", "pipelines", "experiments", "reports")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
# Notation, patterns and examples that are no names of the code.
NOTATION = {"a", "with", "hope", "prepare_NAME", "fixed_2", "temporal_low"}


def names_in(tree: ast.Module) -> set[str]:
    """Every name in the code of a module, words of its strings included, docstrings left out."""
    said = {id(node.body[0].value) for node in documented(tree)}
    names: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            names.update(str(getattr(node, field, "")).split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            names.update(re.findall(r"\w+", node.value))
    return names


def defined_in(tree: ast.Module) -> set[str]:
    """Functions, classes, their parameters and fields: what another module's docstring may speak of."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def documented(tree: ast.Module) -> list[Any]:
    return [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)]


def unknown_names(trees: dict[str, ast.Module]) -> list[str]:
    everywhere = set().union(*map(defined_in, trees.values())) | {Path(name).stem for name in trees} | NOTATION
    found = []
    for path, tree in trees.items():
        known = names_in(tree) | everywhere
        for node in documented(tree):
            words = re.findall(r"`([A-Za-z_]\w*)`", ast.get_docstring(node) or "")
            found += [f"{path} {getattr(node, 'name', '')}: `{word}`" for word in words if word not in known]
    return found


def test_names_in_docstrings_are_names_of_the_code() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    assert unknown_names(trees) == []


def test_a_parameter_that_was_renamed_is_found_in_its_docstring() -> None:
    source = 'def f(new_name):\n    """Double `old_name`, which `f` takes as `new_name`."""\n    return 2 * new_name\n'
    assert unknown_names({"m.py": ast.parse(source)}) == ["m.py f: `old_name`"]
