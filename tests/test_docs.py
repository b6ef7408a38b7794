"""The pages say what is so: every command, link, path and config key of README.md and docs/*.md, taken from them."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from experiments import knobs
from experiments.cli import build_parser, main
from experiments.compose import choices, load_config
from experiments.grid import build_grid
from hope_core import get_variant
from tests.pages import ROOT, blocks

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

# Commands of the pages that are not run here, by how they begin, and why. Of those of `hope` the study is planned.
NOT_RUN = {
    "hope run": "trains; tests/experiments/test_run.py",
    "hope rerun": "needs a finished study; tests/experiments/test_rerun.py",
    "hope report": "needs a finished study; tests/experiments/test_finished.py",
    "hope sync": "needs a finished study; tests/experiments/test_mirror.py",
    "hope compare": "needs a finished study; tests/experiments/test_finished.py",
    "hope launch --address": "needs a cluster; tests/experiments/test_launch.py",
    "hope theory": "draws figures for seconds; tests/hope_core/test_theory.py",
    "hope ui": "serves until it is stopped",
    "make": "takes minutes: the whole suite, a study, a bench",
    "pytest": "is what runs now; tests/test_add_a_variant.py runs the variant's",
    "python -m": "takes minutes on a quiet machine",
    "pip install": "fetches packages",
    "pre-commit": "fetches its tools",
    "git": "changes a checkout",
    "export": "sets a variable of the reader's shell",
    "ray start": "starts a Ray head; tests/experiments/test_launch.py",
    "kubectl": "needs Kubernetes",
}
# Pages whose commands need what the page makes first.
RUN_ELSEWHERE = {
    "docs/add-a-variant.md": "tests/test_add_a_variant.py",
    "docs/add-a-benchmark.md": "tests/experiments/test_choice_study.py",
}
# Paths that pages name and the reader makes.
READERS_OWN = {"conf/benchmark/zoo.yaml"}
TESTED_TREES = ("conf", "docs", "experiments", "hope_core", "pipelines", "reports", "tests")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The words of every command in the page's code blocks."""
    lines = "".join(blocks(ROOT / page, "")).replace("\\\n", " ").splitlines()
    starts = tuple({start.split()[0] + " " for start in NOT_RUN})
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def spans(page: str) -> list[str]:
    """What the page's sentences have in code type."""
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def is_run(words: list[str]) -> bool:
    if words[:3] == ["hope", "schedule", "start"]:
        return "--once" in words  # else it goes on until it is stopped
    return not any(words[: len(start.split())] == start.split() for start in NOT_RUN)


def check_named(words: list[str]) -> None:
    """The command, target or module is there, and what it says of a study can be planned."""
    if words[0] == "hope":
        names = words[1:3] if words[1] == "schedule" else words[1:2]
        with pytest.raises(SystemExit) as ended:
            main([*names, "--help"])
        assert ended.value.code == 0
    elif words[0] == "make":
        known = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(known)
    elif words[:2] == ["python", "-m"]:
        found = importlib.util.find_spec(words[2])
        assert found
        assert found.origin
        source = Path(found.origin.replace("__init__", "__main__")).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words[3:] if word.startswith("--"))
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)


def check_planned(words: list[str]) -> None:
    """The words are understood, their study can be planned, and the trials that they name are in it."""
    args, rest = build_parser().parse_known_args(words[1:])
    assert not [word for word in rest if word.startswith("-")]
    overrides = [*getattr(args, "overrides", []), *rest]
    if any(word.startswith("study=") for word in overrides):
        trials = {trial.name for trial in build_grid(load_config(overrides)[0]).trials}
        assert set(getattr(args, "trials", [])) <= trials


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page not in RUN_ELSEWHERE])
def test_every_command_of_a_page_works(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        words = [re.sub(r"^(store=)?(/data|/shared|/store)", rf"\1{tmp_path}", word) for word in words]
        if "--watch" in words:
            Path(words[words.index("--watch") + 1]).mkdir()
        if is_run(words):
            assert main(words[1:]) == 0, (shlex.join(words), capsys.readouterr().err)
            continue
        check_named(words)
        if words[0] == "hope":
            check_planned(words)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    """Commands within sentences, files, folders and config keys."""
    keys = knobs.known_keys()
    for span in spans(page):
        words = span.split()
        if words[0] in ("hope", "make") or words[:2] == ["python", "-m"]:
            if len(words) > 1:
                check_named(shlex.split(span))
        elif re.fullmatch(rf"({'|'.join(TESTED_TREES)})/[\w./*-]*", span) and span not in READERS_OWN:
            assert [*ROOT.glob(span)], f"{page} names {span}"
        elif re.fullmatch(rf"({'|'.join(knobs.KINDS)})\.[a-z_.]+", span):
            assert span in keys, f"{page} names {span}; docs/knobs.md has all keys"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_page_of_all_keys_is_what_the_configs_say_now() -> None:
    assert knobs.PAGE.read_text(encoding="utf-8") == knobs.page(), "run: python -m experiments.knobs --write"


def test_the_readme_s_table_of_variants_is_the_registry_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \| .+ \|$", text_of("README.md"), re.MULTILINE)
    assert len(rows) >= 19
    for name, *parts in rows:
        variant = get_variant(name)
        assert parts == [variant.positions.kind, variant.frequencies.kind, variant.scaling.kind]


def test_the_readme_is_one_page_and_its_studies_are_those_of_conf() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) < 200
    studies = re.findall(r"^\| `(\w+)` \| .+\? ?.* \|$|^\| `(\w+)` \| [^|]+ \|$", text, re.MULTILINE)
    assert {first or second for first, second in studies} == set(choices("study"))


def test_commits_and_checks_use_the_same_ruff() -> None:
    used = re.search(r"\[ruff==(\S+)\]", text_of(".pre-commit-config.yaml"))
    assert used
    assert f"\nruff=={used[1]}\n" in text_of("constraints.txt")


def test_the_version_is_one() -> None:
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == version
    assert f"## {version}" in text_of("CHANGELOG.md")
