"""Mutants: one small fault at a time in the code that a wrong result would come from; a test must notice it.

    python -m tests.mutation [module ...]

prints, for each module, how many mutants there are, how many the tests kill, and those that live. Tests are collected
once; each mutant is a forked process that puts the faulty code in place of the sound one and runs the tests that reach
the line, quickest first, to the first failure. No file is changed. Exit code 1 when a mutant lives that
tests/mutants.yaml does not excuse.

mutmut leaves decorated functions alone (every property here), and constants and defaults; hence this script.
"""

import ast
import copy
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import coverage
import pytest
import yaml
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parents[1]
OF_SLOTS = tuple(
    f"tests/hope_core/test_{name}.py" for name in ("variants", "frequencies", "rotary", "positions", "golden")
)
OF_PLACES = tuple(
    f"tests/hope_core/test_{name}.py" for name in ("positions", "positions_property", "golden", "variants")
)
# Modules, and the tests that have to notice a fault in them.
TESTS: dict[str, tuple[str, ...]] = {
    "pipelines.engine.fingerprint": ("tests/pipelines/engine/test_fingerprint.py",),
    # Simulations notice much, but take seconds for every mutant that lives.
    "reports.statistics": ("tests/reports/test_statistics.py", "-k", "not simulation and not is_found_as_often"),
    "reports.verdicts": ("tests/reports/test_verdicts.py",),
    **{f"hope_core.{name}": OF_SLOTS for name in ("scaling", "frequencies", "rotary")},
    **{f"hope_core.{name}": OF_PLACES for name in ("segments", "positions", "designs")},
}
OPERATORS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, And Or, Add Sub, Mult Div, BitAnd BitOr"
NAMES = "min max, any all, minimum maximum, floor ceil, sin cos, amin amax"
PAIRS = [pair.split() for pair in f"{OPERATORS}, {NAMES}".split(", ")]
SWAPS = dict([*PAIRS, *(pair[::-1] for pair in PAIRS)]) | {"FloorDiv": "Div", "Mod": "Mult", "Pow": "Mult"}
GUARDS = ("device", "strict")  # arguments that change nothing on one device, with lists of one length
PYTEST = ("-q", "-s", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:warnings")


def swapped(op: ast.AST) -> ast.AST:
    return getattr(ast, SWAPS[type(op).__name__])()


def altered(node: ast.AST, **changes: Any) -> ast.AST:
    made = copy.copy(node)
    vars(made).update(changes)
    return made


def faults(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                yield altered(node, ops=[*ops[:place], swapped(op), *ops[place + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op).__name__ in SWAPS:
            yield altered(node, op=swapped(op))
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield altered(node, value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield altered(node, value=value + 1)
        case ast.Constant(value=str(value)) if " " not in value:  # others are prose
            yield altered(node, value=SWAPS.get(value, value + "?"))
        case ast.Name(id=name) if name in SWAPS:
            yield altered(node, id=SWAPS[name])
        case ast.Attribute(attr=name) if name in SWAPS:
            yield altered(node, attr=SWAPS[name])
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield altered(node, test=ast.copy_location(ast.UnaryOp(ast.Not(), test), test))
        case ast.comprehension(ifs=[_]):
            yield altered(node, ifs=[])
        case ast.Call(keywords=keywords):
            for keyword in keywords:
                if keyword.arg not in GUARDS:
                    yield altered(node, keywords=[other for other in keywords if other is not keyword])
        case ast.Assign(targets=[ast.Name() | ast.Tuple()]):
            return
    if isinstance(node, ast.AugAssign | ast.Raise | ast.Assign | ast.Expr):
        yield ast.copy_location(ast.Pass(), node)


def sites(node: ast.AST, scope: str = "", statement: ast.stmt | None = None) -> Iterator[tuple[ast.AST, str, ast.stmt]]:
    """Nodes that may be faulty, with the name of their function or class and their statement."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return
        case ast.keyword(arg=name) if name in GUARDS:
            return
        case ast.Raise(exc=ast.Name()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(value=ast.Call()) | ast.AnnAssign(value=ast.Call()) if not scope.endswith("()."):
            return  # an object: plant() leaves it as it is
    if isinstance(node, ast.stmt):
        statement = node
    if statement is not None:
        yield node, scope, statement
    if isinstance(node, ast.Raise):  # the rest of it is prose
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope += f"{node.name}()." if isinstance(node, ast.FunctionDef) else f"{node.name}."
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from sites(child, scope, statement)


class Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def function_of(value: Any) -> Any:
    """The function within a property, class method or wrapper."""
    for name in ("fget", "func", "__func__", "__wrapped__"):
        value = getattr(value, name, None) or value
    return value


def plant(faulty: dict[str, Any], owner: Any, module: str) -> None:
    """Give a module, or one of its classes, the functions' code and the constants of another namespace."""
    for name, new in faulty.items():
        old = vars(owner).get(name)
        function, constant = function_of(old), isinstance(old, bool | int | float | str | tuple)
        if isinstance(function, FunctionType) and function.__module__ == module:
            for part in ("__code__", "__defaults__", "__kwdefaults__"):
                setattr(function, part, getattr(function_of(new), part))
        elif isinstance(old, type) and old.__module__ == module:
            plant(dict(vars(new)), old, module)
        elif constant and isinstance(owner, type) and old != new:
            setattr(owner, name, new)
        elif constant and old != new:
            for other in list(sys.modules.values()):  # from module import name
                if isinstance(other, ModuleType) and vars(other).get(name) is old:
                    setattr(other, name, new)


def in_child(work: Callable[[], Any], limit_s: float) -> Any:
    """What `work` returns in a forked process; None if it raises, or takes more than limit_s of processor time."""
    with tempfile.TemporaryFile("w+") as answer:
        if (child := os.fork()) == 0:
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 5))
                json.dump(work(), answer)
                answer.flush()
            except BaseException as error:
                if isinstance(error, SystemExit):
                    print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return json.loads(answer.read() or "null")


class Mutants:
    """A pytest plugin that runs the tests for each mutant of a module, in the place of running them once."""

    def __init__(self, module: str, excuses: dict[str, str]) -> None:
        self.module, self.excuses, self.faults = module, excuses, 0

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        killed, lived = 0, []
        for mutant, noticed in examine(self.module, {item.nodeid: item for item in session.items}):
            killed += noticed
            if not noticed:
                lived.append(mutant)
                print(f"  {mutant}  # {self.excuses.get(mutant, 'NOT EXCUSED')}", flush=True)
        gone = self.excuses.keys() - set(lived)
        print(*(f"  excused, but no longer alive: {mutant}\n" for mutant in gone), sep="", end="")
        print(f"{self.module}: {killed + len(lived)} mutants, {killed} killed, {len(lived)} live", flush=True)
        self.faults = len(gone) + sum(mutant not in self.excuses for mutant in lived)
        return True


def examine(module: str, items: dict[str, pytest.Item]) -> Iterator[tuple[str, bool]]:
    """Every mutant of a module, and whether a test notices it."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    sound = importlib.import_module(module)

    def plant_tree() -> None:
        faulty: dict[str, Any] = {"__name__": module}
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), faulty)
        plant(faulty, sound, module)

    def fails(test: str) -> bool:
        return any(report.failed for report in runtestprotocol(items[test], log=False, nextitem=None))

    def without_fault() -> tuple[dict[str, float], dict[int, list[str]]]:
        """Seconds of every test, and the tests that reach a line."""
        plant_tree()
        seconds = {}
        watch = coverage.Coverage(data_file=None, config_file=False, include=[str(path)])
        watch.start()
        for test in items:
            watch.switch_context(test)
            began = time.process_time()
            if fails(test):
                sys.exit(f"{test} fails without a mutant")
            seconds[test] = time.process_time() - began
        watch.stop()
        return seconds, watch.get_data().contexts_by_lineno(str(path))

    def noticed(tests: list[str]) -> bool:
        plant_tree()
        return any(fails(test) for test in tests)

    seconds, reaching = in_child(without_fault, 3600)
    for node, scope, statement in list(sites(tree)):
        if scope.endswith("().") and not isinstance(statement, ast.FunctionDef):
            body = getattr(statement, "body", None)
            lines = range(statement.lineno, body[0].lineno if body else (statement.end_lineno or 0) + 1)
            tests = {test for line in lines for test in reaching.get(str(line), ())}
        else:  # constants, defaults and class attributes run when the module is imported: any test may notice
            tests = set(seconds)
        quickest = sorted(tests & seconds.keys(), key=lambda test: seconds[test])
        limit_s = 10 + 10 * sum(seconds[test] for test in quickest)
        before = ast.unparse(statement).splitlines()[0]
        for fault in faults(node):
            Swap(node, fault).visit(tree)
            after = ast.unparse(fault if node is statement else statement).splitlines()[0]
            mutant = f"{scope} {before} -> {after}" + ("" if quickest else " (no test comes here)")
            yield mutant, bool(quickest) and in_child(lambda: noticed(quickest), limit_s) is not False  # noqa: B023
            Swap(fault, node).visit(tree)


def main(wanted: list[str]) -> int:
    if unknown := set(wanted) - TESTS.keys():
        sys.exit(f"no mutants of {', '.join(sorted(unknown))}; known: {', '.join(TESTS)}")
    generate = settings(phases=(Phase.explicit, Phase.generate), database=None, derandomize=True, deadline=None)
    settings.register_profile("mutation", generate, suppress_health_check=list(HealthCheck))
    settings.load_profile("mutation")
    excused = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text())
    plugins = [Mutants(module, excused.get(module, {})) for module in wanted or TESTS]
    for plugin in plugins:
        pytest.main([*PYTEST, *TESTS[plugin.module]], plugins=[plugin])
    return int(any(plugin.faults for plugin in plugins))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
