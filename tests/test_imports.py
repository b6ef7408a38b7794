"""The house's one-way imports: hope_core <- pipelines <- experiments; reports reads MLflow only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hope_core", "pipelines", "experiments", "reports")
FORBIDDEN = {
    "hope_core": {"pipelines", "experiments", "reports", "ray", "mlflow", "hydra", "omegaconf", "optuna"},
    "pipelines": {"experiments", "reports", "hydra", "omegaconf", "mlflow"},
    "experiments": set(),
    "reports": {"hope_core", "pipelines", "experiments", "torch", "transformers", "ray", "hydra", "omegaconf"},
}
# The only hope_core module that may know transformers.
TRANSFORMERS_IN_CORE = {"modeling.py"}


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_walker_sees_every_form_of_import() -> None:
    source = "import ray.data as rd\ndef f():\n    from mlflow.tracking import MlflowClient\nfrom . import sibling\n"
    assert imported_packages(source) == {"ray", "mlflow"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_goes_against_the_order(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no source found for {package}"
    against = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in files
        if (names := imported_packages(path.read_text()) & FORBIDDEN[package])
    }
    assert against == {}


def test_only_the_modeling_room_of_hope_core_knows_transformers() -> None:
    knowing = {
        path.name
        for path in (ROOT / "hope_core").rglob("*.py")
        if "transformers" in imported_packages(path.read_text())
    }
    assert knowing <= TRANSFORMERS_IN_CORE
