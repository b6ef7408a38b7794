"""docs/knobs.md: every config key with its unit, its meaning and its value in every file of conf/.

`python -m experiments.knobs` prints the page, `--write` writes it. Keys, defaults and allowed values are read from the
structured configs, values from conf/ as it is composed, units and meanings from knobs.yaml beside this module.
"""

import argparse
import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import yaml

from experiments.cluster import ClusterConfig
from experiments.compose import CONF, choices, load_config
from experiments.config import BENCHMARK_KINDS, Config, StudyConfig
from pipelines.data_stages import DatasetConfig
from pipelines.dataset_folder import FolderDataset
from pipelines.finetune import Recipe
from pipelines.models import RandomModel
from pipelines.pretrained import PretrainedModel

PAGE = CONF.parent / "docs" / "knobs.md"
MEANINGS = Path(__file__).with_suffix(".yaml")
LONGEST_VALUE = 44  # characters; longer ones are cut
TITLES = {
    "study": "The grid; `conf/study/`, one file a study. `paper` is the papers' grid.",
    "model": "`conf/model/`. `study=paper` is `qwen2_vl_7b` with `language` Qwen/Qwen2-7B.",
    "recipe": "How every trial is trained; `conf/recipe/`. `paper_2b` and `paper_7b` are the papers' settings.",
    "dataset": "Training data; `conf/dataset/`. `llava_video_178k` has the papers' frame budget.",
    "benchmark": (
        "`conf/benchmark/`. `benchmark=NAME` adds one to a study; its keys are then `benchmarks.NAME.KEY`. The papers' "
        "values are those of the `published` needle grids and of the multiple-choice sets."
    ),
    "cluster": "Where stages run; `conf/cluster/`. No part of any result's identity. The papers: `gpus`.",
}
STUDIES = ["quickstart", "paper"]  # those whose values are shown
KINDS: dict[str, tuple[type, ...]] = {
    "study": (StudyConfig,),
    "model": (RandomModel, PretrainedModel),
    "recipe": (Recipe,),
    "dataset": (DatasetConfig, FolderDataset),
    "benchmark": tuple(BENCHMARK_KINDS.values()),
    "cluster": (ClusterConfig,),
}
HEAD = """# Every config key

Written by `python -m experiments.knobs --write`, from the dataclasses that the config becomes; a test compares the two.

Give a key as `KEY=VALUE` after any command, as in `hope run study=quickstart recipe.lr=0.002`, or a whole group as
`recipe=paper_2b`. Keys that are not here are refused. A column is what a file of `conf/` sets; - is a key that its kind
does not have. *default* holds where a file is silent; a key without one must be given. Names carry units: a *frame* is
a picture of the video, a *cell* is `temporal_patch_size` frames.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a group: its dotted name below the group, its default ("" if it must be given), allowed values."""

    name: str
    default: str
    allowed: tuple[str, ...]


def keys(kind: type, place: str = "") -> Iterator[Key]:
    """The keys of a config dataclass, those of dataclasses in it by dotted name."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = _dataclasses_in(hints[field.name])
        if not inner or len(typing.get_args(hints[field.name])) > 1:  # the whole can be null, a list, or many
            default = "" if field.default is dataclasses.MISSING else shown(field.default)
            yield Key(place + field.name, default, _allowed(hints[field.name]))
        for each in inner:
            yield from keys(each, f"{place}{field.name}.")


def known_keys() -> set[str]:
    """Every key as it is given to a command, `benchmarks.NAME.KEY` with the word NAME."""
    places = {group: f"{group}." for group in KINDS} | {"benchmark": "benchmarks.NAME."}
    below = {places[group] + key.name for group, kinds in KINDS.items() for kind in kinds for key in keys(kind)}
    return below | {field.name for field in dataclasses.fields(Config)} | set(KINDS)


def page() -> str:
    """The whole page."""
    meanings = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    rows = [["store", "outputs"], ["tracking_uri", "null"], ["on_failure", "continue"]]
    files = _files()
    parts = [HEAD, _table(["key", "unit", "meaning", "default"], _rows("config", rows, meanings, {}))]
    for group, kinds in KINDS.items():
        parts.append(f"## {group}\n\n{TITLES[group]}\n")
        for kind in kinds:
            those = {name: value for name, value in files[group].items() if type(value) is kind}
            found = list(dict.fromkeys(keys(kind)))
            values = [[key.name, key.default, *(_value(value, key.name) for value in those.values())] for key in found]
            allowed = {key.name: key.allowed for key in found}
            if len(kinds) > 1:
                parts.append(f"### {typing.get_args(typing.get_type_hints(kind)['kind'])[0]}\n")
            parts.append(_table(["key", "unit", "meaning", "default", *those], _rows(group, values, meanings, allowed)))
    return "\n".join(parts)


def shown(value: Any) -> str:
    """A value as the command line takes it, cut where it is long."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    text = value if isinstance(value, str) else json.dumps(value, default=_plain, ensure_ascii=False)
    text = text.replace('"', "").replace("\n", "\\n").replace("|", "\\|")
    if len(text) > LONGEST_VALUE:
        text = text[: text.rfind(" ", 0, LONGEST_VALUE)] + " ..."
    return f"`{text}`" if text else "empty"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {k: v for k, v in dataclasses.asdict(cast(Any, value)).items() if v is not None}
    return dict(value)


def _value(config: Any, key: str) -> str:
    """The value at a dotted key; "-" below something that is null or of another kind."""
    for part in key.split("."):
        if not hasattr(config, part):
            return "-"
        config = getattr(config, part)
    return shown(config)


def _rows(
    group: str, values: Sequence[list[str]], meanings: dict[str, Any], allowed: dict[str, tuple[str, ...]]
) -> list[list[str]]:
    rows = []
    for name, *columns in values:
        if name not in meanings[group]:
            raise ValueError(f"{group} {name} has no unit and meaning; add them to {MEANINGS.name}")
        unit, meaning = meanings[group][name]
        choice = f"one of {', '.join(f'`{value}`' for value in allowed[name])}" if allowed.get(name) else ""
        rows.append([f"`{name}`", unit, "; ".join(filter(None, (meaning, choice))), *columns])
    return rows


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _files() -> dict[str, dict[str, Any]]:
    """The files of conf/ as the configs that they become, by group; one composition serves a file of each group."""
    files: dict[str, dict[str, Any]] = {group: {} for group in KINDS}
    files["study"] = {study: load_config([f"study={study}"])[0].study for study in STUDIES}
    names = {group: choices(group) for group in KINDS if group not in ("study", "benchmark")}
    for row in zip_longest(*names.values()):
        chosen = {group: name for group, name in zip(names, row, strict=True) if name}
        config, _ = load_config(["study=quickstart", *(f"{group}={name}" for group, name in chosen.items())])
        for group, name in chosen.items():
            files[group][name] = getattr(config, group)
    config, _ = load_config(["study=quickstart", *(f"benchmark={name}" for name in choices("benchmark"))])
    return files | {"benchmark": config.benchmarks}


def _dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that a field of this type may hold, at any depth."""
    if dataclasses.is_dataclass(hint):
        return [cast(type, hint)]
    return [found for member in typing.get_args(hint) for found in _dataclasses_in(member)]


def _allowed(hint: Any) -> tuple[str, ...]:
    """The values of a Literal with more than one."""
    values = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return tuple(map(str, values)) if len(values) > 1 else ()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.knobs", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/knobs.md instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
