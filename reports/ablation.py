"""Main effects of a study's axes, from pairs of variants that differ in one axis alone.

Every variant has three axes; a study may have more (recipes, models, data), whose levels its settings name.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from reports.results import StudyResults
from reports.statistics import Estimate, contrast
from reports.verdicts import ask, joined_contexts, questions_under

AXES = {"positions": "position design", "frequencies": "frequency allocation", "scaling": "temporal scaling"}


@dataclass(frozen=True)
class Effect:
    """Replacing one level of an axis by another, everything else equal, averaged over the pairs that do so.

    settings: those whose trials answered the same questions and are averaged over; [""] without further axes.
    """

    axis: str
    before: str
    after: str
    pairs: list[tuple[str, str]]
    difference: Estimate
    settings: list[str]


def levels_of(setting: str) -> dict[str, str]:
    """The axes and levels that a setting names: "recipe.lr=0.002, model=tiny" has two; other text is one level."""
    if not setting:
        return {}
    pairs = [part.split("=", 1) for part in setting.split(", ")]
    if any(len(pair) == 1 for pair in pairs):
        return {"setting": setting}
    return {name.strip(): level.strip() for name, level in pairs}


def axes_of(entry: dict[str, Any]) -> dict[str, str]:
    """Every axis of one of the record's variants with its level."""
    return {axis: entry[axis] for axis in AXES} | levels_of(entry["setting"])


def matched_pairs(entries: list[dict[str, Any]], axis: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(level before, level after) -> names of variants that differ in this axis alone, in the order of entries.

    Along a further axis the same variant is paired with itself at another setting.
    """
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    axes = [axes_of(entry) for entry in entries]
    order = list(dict.fromkeys(levels.get(axis, "") for levels in axes))
    for one, other in combinations(range(len(entries)), 2):
        differing = {name for name in axes[one] | axes[other] if axes[one].get(name) != axes[other].get(name)}
        same_variant = entries[one]["variant"] == entries[other]["variant"]
        if differing != {axis} or (axis not in AXES and not same_variant):
            continue
        first, second = sorted((one, other), key=lambda place: order.index(axes[place][axis]))
        levels = (axes[first][axis], axes[second][axis])
        pairs.setdefault(levels, []).append((entries[first]["name"], entries[second]["name"]))
    return pairs


def settings_asked_alike(results: StudyResults, benchmark: str) -> list[list[str]]:
    """The study's settings in groups whose trials were put the same questions."""
    cells = results.cells[(results.cells.benchmark == benchmark) & (results.cells.status == "FINISHED")]
    groups: dict[tuple[str, ...], list[str]] = {}
    for setting in results.settings:
        here = cells[cells.setting == setting]
        if len(here):
            asked = (str(here.question_set.iloc[0]), *results.contexts(benchmark, setting))
            groups.setdefault(asked, []).append(setting)
    return list(groups.values())


def axis_effects(results: StudyResults, benchmark: str, scale_rule: str) -> list[Effect]:
    """Every axis's effects beyond the training length. Intervals are of each effect alone, without correction."""
    effects = []
    questions = questions_under(results, benchmark, scale_rule)
    for settings in settings_asked_alike(results, benchmark):
        contexts = joined_contexts(results, benchmark, settings[0])
        asked = ask(results, questions[questions.setting.isin(settings)], contexts)
        entries = [results.variant(name) for name in asked.variants]
        for axis in dict.fromkeys(axis for entry in entries for axis in axes_of(entry)):
            for (before, after), pairs in matched_pairs(entries, axis).items():
                weights = dict.fromkeys(asked.variants, 0.0)
                for one, other in pairs:
                    weights[one] -= 1 / len(pairs)
                    weights[other] += 1 / len(pairs)
                difference = contrast(asked.column, asked.weights(weights))
                effects.append(Effect(axis, before, after, pairs, difference, settings))
    return effects
