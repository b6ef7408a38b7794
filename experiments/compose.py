"""Composing a study's config: YAML groups in conf/ put together by Hydra once, checked, and made frozen dataclasses.

Nothing below this module sees Hydra or a DictConfig.
"""

import dataclasses
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from experiments.axes import as_overrides, combinations, expand_parts, refuse_set_axes, setting_name
from experiments.config import BENCHMARK_KINDS, Config, Setting, VariantEntry
from pipelines.engine import hide_passwords

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("study", "model", "recipe", "dataset", "benchmark", "cluster")
ANY_SHAPE = ("study.axes", "study.parts", "study.search.scales")  # a mapping given to these takes the old one's place


def choices(group: str) -> list[str]:
    """The names of a config group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load_config(overrides: Sequence[str]) -> tuple[Config, str]:
    """Compose `study=NAME group=choice key=value ...`; return the config and its resolved YAML without passwords.

    `benchmark=NAME`, which may be given several times, adds a benchmark to the study's own.
    Raises ValueError in one line for an unknown study, group, choice or key, an addition, or a value of a wrong type.
    """
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is no override; write key=value, for example study=quickstart")
        if override.startswith(("+", "~")):
            key = override.split("=", 1)[0].lstrip("+~")
            raise ValueError(f"{override!r} adds or removes a key; only known keys can be set: {key}=...")
        key, _, value = override.partition("=")
        if value.strip() == "{}" and key not in ANY_SHAPE:
            raise ValueError(f"{override!r} changes nothing, as mappings are merged; set a key below it: {key}.KEY=...")
    if not any(override.startswith("study=") for override in overrides):
        raise ValueError(f"no study given; add study=NAME, one of {', '.join(choices('study'))}")
    config, resolved = _compose(overrides)
    refuse_set_axes(config.study.axes, overrides)
    settings = []
    for values in combinations(config.study.axes):
        here, _ = _compose([*overrides, *as_overrides(values)]) if values else (config, resolved)
        settings.append(Setting(setting_name(values), values, here.model, here.recipe, here.dataset))
    return replace(config, settings=tuple(settings)), resolved


def _compose(overrides: Sequence[str]) -> tuple[Config, str]:
    """One config and its YAML, without its settings."""
    for key, value in (override.split("=", 1) for override in overrides):
        if key in GROUPS and value not in choices(key):
            raise ValueError(f"unknown {key} {value!r}; there are {', '.join(choices(key))} (conf/{key}/*.yaml)")
    added = named_benchmarks(overrides)
    own = "" if not added else (CONF / "study" / f"{_study_name(overrides)}.yaml").read_text(encoding="utf-8")
    composing = [override for override in overrides if not override.startswith("benchmark=")]
    composing += [f"+benchmark@benchmarks.{name}={name}" for name in added if f"@benchmarks.{name}:" not in own]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[text for override in composing for text in _replacing(override)])
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from None
    if isinstance(values["study"].get("variants"), list):  # a bare name is short for {name: NAME}
        entries, _ = expand_parts(values["study"]["parts"])
        entries = values["study"]["variants"] + entries
        values["study"]["variants"] = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    _refuse_unknown(values, Config, "")
    try:
        config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        # Of a union's errors, the one that our own dataclass raised says most.
        first = min(error.errors(), key=lambda found: found["type"] != "value_error")
        place = ".".join(str(part) for part in first["loc"] if part not in BENCHMARK_KINDS)
        reason = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, as in [1, 2]")
        raise ValueError(
            reason if first["type"] == "value_error" else f"{place} is {first['input']!r}: {reason}"
        ) from None
    return config, hide_passwords(OmegaConf.to_yaml(composed, resolve=True))


def quoted(value: str) -> str:
    """A text as the value of an override, whatever signs it holds."""
    return str(QuotedString(value, Quote.double).with_quotes())


def named_benchmarks(overrides: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks that `benchmark=NAME` overrides name, each once."""
    found = (override.removeprefix("benchmark=") for override in overrides if override.startswith("benchmark="))
    return tuple(dict.fromkeys(found))


def _study_name(overrides: Sequence[str]) -> str:
    return [override.removeprefix("study=") for override in overrides if override.startswith("study=")][-1]


def _replacing(override: str) -> list[str]:
    """The override as Hydra needs it, which cannot put a mapping with other keys in the place of a value."""
    key, _, value = override.partition("=")
    return [f"{key}=null", f"++{override}"] if key in ANY_SHAPE and value.startswith("{") else [override]


def _one_line(error: Exception) -> str:
    """Hydra's message in one line; for an unknown key, without its advice to add it; for a text, how to quote it."""
    if isinstance(error, OverrideParseException):
        override = error.override.lstrip("+")
        key, _, value = override.partition("=")
        in_it = "close its brackets, and quote texts in it that hold more than plain letters, digits and spaces"
        remedy = in_it if value.startswith(("[", "{")) else f"quote it: {shlex.quote(f'{key}={quoted(value)}')}"
        return f"{override} cannot be read; {remedy}"
    text = " ".join(str(error).split())
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown[1])
    return re.split(r" full_key:| See https:| 3\. To sweep", text)[0]


def _unknown_key(key: str) -> str:
    """Which part of the key is none, and what there is in its place."""
    kind: Any = Config
    place = ""
    for part in key.split("."):
        known = {field.name for field in dataclasses.fields(kind)}
        if part not in known:
            return f"unknown key {place}{part}; {place.rstrip('.') or 'the config'} has {', '.join(sorted(known))}"
        found = _dataclass_in(typing.get_type_hints(kind)[part], {})
        if found is None:
            break
        kind = found
        place += f"{part}."
    if key.startswith("benchmarks."):
        return f"unknown key {key}; the study has no such benchmark (benchmark=NAME adds one), or that has no such key"
    return f"unknown key {key}; the {part} that was chosen has no such key (docs/knobs.md lists them by kind)"


def _dataclass_in(hint: Any, value: Mapping[str, Any]) -> type | None:
    """The dataclass that a field of this type holds; of several, the one whose `kind` the value names."""
    members = [hint, *typing.get_args(hint)]
    found = [cast(type, member) for member in members if dataclasses.is_dataclass(member)]
    if len(found) > 1:
        kinds = {typing.get_args(typing.get_type_hints(member)["kind"])[0]: member for member in found}
        return kinds.get(value.get("kind"))
    return found[0] if found and typing.get_origin(hint) is not dict else None


def _refuse_unknown(values: Mapping[str, Any], kind: type, place: str) -> None:
    """Raise for a key that no field of the dataclass `kind` reads (a value of one type alone is pydantic's work)."""
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise ValueError(f"unknown key {place}{key}; {place.rstrip('.') or 'the config'} has {known}")
        hint = hints[key]
        found = _dataclass_in(hint, value) if isinstance(value, Mapping) else None
        if found is not None:
            _refuse_unknown(value, found, f"{place}{key}.")
        elif hint == tuple[VariantEntry, ...]:
            for entry in value if isinstance(value, list) else ():
                if not isinstance(entry, Mapping):
                    raise ValueError(f"study.variants has {entry!r}; give a variant's name, or {{name: ..., ...}}")
                _refuse_unknown(entry, VariantEntry, "study.variants.")
        elif kind is Config and key == "benchmarks":
            if not isinstance(value, Mapping):
                raise ValueError(f"benchmarks is {value!r}; study.exclude=[{{benchmark: NAME}}] leaves one out")
            for name, inner in value.items():
                if not isinstance(inner, Mapping):
                    raise ValueError(
                        f"benchmarks.{name} is {inner!r}; study.exclude=[{{benchmark: {name}}}] leaves it out"
                    )
                if inner.get("kind") not in BENCHMARK_KINDS:
                    known = ", ".join(BENCHMARK_KINDS)
                    raise ValueError(f"{place}{key}.{name}.kind is {inner.get('kind')!r}; allowed are {known}")
                _refuse_unknown(inner, BENCHMARK_KINDS[inner["kind"]], f"{place}{key}.{name}.")
