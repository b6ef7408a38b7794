"""Main effects of a variant's three axes, from pairs of variants that differ in one axis alone."""

from dataclasses import dataclass
from itertools import combinations

from reports.results import StudyResults
from reports.statistics import Estimate, contrast
from reports.verdicts import ask, joined_contexts, questions_under

AXES = {"positions": "position design", "frequencies": "frequency allocation", "scaling": "temporal scaling"}


@dataclass(frozen=True)
class Effect:
    """Replacing one level of an axis by another, everything else equal, averaged over the pairs that do so."""

    axis: str
    before: str
    after: str
    pairs: list[tuple[str, str]]
    difference: Estimate


def matched_pairs(results: StudyResults, axis: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(level before, level after) -> pairs of variants that differ in this axis alone, in the study's order."""
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    orders: dict[str, int] = {}
    for variant in results.record["variants"]:
        orders.setdefault(variant[axis], len(orders))
    for one, other in combinations(results.record["variants"], 2):
        if one[axis] != other[axis] and all(one[name] == other[name] for name in AXES if name != axis):
            before, after = sorted((one, other), key=lambda variant: orders[variant[axis]])
            pairs.setdefault((before[axis], after[axis]), []).append((before["name"], after["name"]))
    return pairs


def axis_effects(results: StudyResults, benchmark: str, scale_rule: str) -> list[Effect]:
    """Every axis's effects beyond the training length. Intervals are of each effect alone, without correction."""
    asked = ask(results, questions_under(results, benchmark, scale_rule), joined_contexts(results, benchmark))
    effects = []
    for axis in AXES:
        for (before, after), pairs in matched_pairs(results, axis).items():
            present = [pair for pair in pairs if set(pair) <= set(asked.variants)]
            if not present:
                continue
            weights = dict.fromkeys(asked.variants, 0.0)
            for one, other in present:
                weights[one] -= 1 / len(present)
                weights[other] += 1 / len(present)
            difference = contrast(asked.column, list(weights.values()))
            effects.append(Effect(axis, before, after, present, difference))
    return effects
