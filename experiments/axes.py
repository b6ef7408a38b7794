"""A study's further axes: values of model, recipe and data set in every combination, and variants made of parts.

Everything here works on plain values, before a config is validated.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hope_core import Variant, get_variant, list_variants
from hope_core.designs import POSITIONS
from hope_core.frequencies import FREQUENCIES
from hope_core.parts import Part, Registry
from hope_core.scaling import SCALINGS, Dynamic

ROOTS = ("model", "recipe", "dataset")  # what a setting may change: a group's choice or a key below it
REGISTRIES: dict[str, Registry[Any]] = {"positions": POSITIONS, "frequencies": FREQUENCIES, "scaling": SCALINGS}


def combinations(axes: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any]]:
    """Every setting of the axes, as values by key; one without values where there are no axes.

    Raises ValueError for a key that is none of an axis, and for values that are no list or that one name would have.
    """
    for key, values in (axes or {}).items():
        if key.split(".")[0] not in ROOTS:
            raise ValueError(
                f"study.axes has {key!r}; allowed are {', '.join(ROOTS)} and keys below them, such as recipe.lr "
                "(variants, seeds, benchmarks, contexts and scale rules have lists of their own)"
            )
        if not isinstance(values, list) or not values or len({json.dumps(value) for value in values}) != len(values):
            raise ValueError(f"study.axes.{key} is {values!r}; give a list of one value or more, each once")
        names = [_text(value) for value in values]
        if alike := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"study.axes.{key} has two values called {alike[0]}; let them differ in their first six digits"
            )
    keys = list(axes or {})
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axes or {}).values())]


def setting_name(values: Mapping[str, Any]) -> str:
    """What reports and ids call a setting: "recipe.lr=0.002, model=tiny"; "" where there are no axes."""
    return ", ".join(f"{key}={_text(value)}" for key, value in values.items())


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value if key in ROOTS else json.dumps(value)}" for key, value in values.items()]


def refuse_set_axes(axes: Mapping[str, Any] | None, overrides: Sequence[str]) -> None:
    """Raise for an override that an axis would undo."""
    for key in (override.split("=", 1)[0] for override in overrides):
        if key in (axes or {}):
            raise ValueError(f"{key} is an axis of this study; set study.axes={{{key}: [...]}} to change its values")


def expand_parts(parts: Mapping[str, Any] | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The variants of every combination of the parts, as entries of study.variants, and what cannot be combined, why.

    Each axis is a list of names or {kind: name, parameter: value}. A combination that is registered has its registered
    name, another one is named after its parts. The inference value of a dynamic scaling is where a checkpoint is
    evaluated and no part of it: it becomes the entry's published scale.
    """
    if parts is None:
        return [], []
    lists = parts.values() if isinstance(parts, Mapping) and set(parts) == set(REGISTRIES) else [None]
    if not all(isinstance(values, list) and values for values in lists):
        raise ValueError(f"study.parts is {parts!r}; give a list for each of {', '.join(REGISTRIES)}")
    axes = [[registry.build(value) for value in parts[axis]] for axis, registry in REGISTRIES.items()]
    # Of two names for one triple the first counts.
    registered = {_triple(variant): variant.name for variant in map(get_variant, reversed(list_variants()))}
    entries, left_out = [], []
    for positions, frequencies, scaling in itertools.product(*axes):
        name = "+".join(_part_name(part) for part in (positions, frequencies, scaling))
        try:
            variant = Variant(name, positions, frequencies, scaling)
        except ValueError as error:
            left_out.append(str(error))
            continue
        entry: dict[str, Any] = {"name": registered.get(_triple(variant), name)}
        if entry["name"] == name:
            entry |= {axis: _trained(getattr(variant, axis)) for axis in REGISTRIES}
        if isinstance(scaling, Dynamic) and scaling.inference is not None:
            entry["published_scale"] = scaling.inference
        entries.append(entry)
    return entries, left_out


def matches(pattern: Mapping[str, Any], coordinates: Mapping[str, Any]) -> bool:
    """Whether a cell with these coordinates is one that the pattern, an entry of study.exclude, names."""
    return all(
        coordinates[key] in (wanted if isinstance(wanted, list | tuple) else [wanted])
        for key, wanted in pattern.items()
    )


def _triple(variant: Variant) -> str:
    return json.dumps([_trained(getattr(variant, axis)) for axis in REGISTRIES], sort_keys=True)


def _trained(part: Part) -> dict[str, Any]:
    """A part's values but for the one that only evaluation uses."""
    return {key: value for key, value in part.to_dict().items() if key != "inference"}


def _part_name(part: Part) -> str:
    """`temporal_low`, or `fixed_2` with the parameters that are not the kind's own."""
    given = [
        value
        for field in dataclasses.fields(part)  # type: ignore[arg-type]
        if field.name != "inference" and (value := getattr(part, field.name)) != field.default
    ]
    return "_".join([part.kind, *map(_text, given)])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "_".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
