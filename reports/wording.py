"""Sentences of a report: the verdict, and what stands behind it."""

import pandas as pd

from reports.results import StudyResults
from reports.tables import RULE_PHRASES, label_of, points
from reports.verdicts import BEYOND, headline_rule, joined_contexts


def listing(words: list[str]) -> str:
    """a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def verdict_sentence(results: StudyResults, grid: pd.DataFrame) -> str:
    """What the study says, in a sentence per benchmark (one for all, when they agree)."""
    rule = headline_rule(results)
    compared = grid[(grid.scale_rule == rule) & (grid.context == BEYOND) & (grid.verdict != "")]
    baseline = results.baseline
    if compared.empty:
        return f"No finished cell can be compared with {baseline} yet."
    where: dict[str, list[str]] = {}
    for benchmark in results.benchmarks:
        here = compared[compared.benchmark == benchmark]
        say = said_over_settings if len(results.settings) > 1 else said_of
        said = f"no finished cell can be compared with {baseline}" if here.empty else say(results, here, baseline)
        where.setdefault(said, []).append(results.record["benchmarks"][benchmark]["title"])
    sentences = [f"on {listing(titles)}, {said}." for said, titles in where.items()]
    opening = f"{length_phrase(results)}, with each variant {RULE_PHRASES.get(rule, f'under the scale rule {rule}')}"
    return f"{opening[0].upper()}{opening[1:]}, {sentences[0]}" + "".join(
        f" {text[0].upper()}{text[1:]}" for text in sentences[1:]
    )


def said_over_settings(results: StudyResults, compared: pd.DataFrame, baseline: str) -> str:
    """How many of a study's settings find each variant better, and worse."""
    decided: dict[str, list[str]] = {}
    unclear: dict[str, list[str]] = {}
    for label, found in compared.groupby(compared.variant.map(lambda name: label_of(results, name)), sort=False):
        counts = [f"{kind} in {number}" for kind in ("better", "worse") if (number := (found.verdict == kind).sum())]
        said = listing(counts) if counts else "neither better nor worse for certain in any"
        (decided if counts else unclear).setdefault(f"{said} of {len(found)} settings", []).append(label)
    parts = [
        f"{listing(names)} {'is' if len(names) == 1 else 'are'} {said}" for said, names in (decided | unclear).items()
    ]
    return f"compared with {baseline}, {'; '.join(parts)}"


def length_phrase(results: StudyResults) -> str:
    whole = [joined_contexts(results, *place) == results.contexts(*place) for place in results.places]
    if all(whole):
        return "over all contexts"
    return "beyond the training length" + (", or over all contexts where there is none beyond it" if any(whole) else "")


def said_of(results: StudyResults, compared: pd.DataFrame, baseline: str) -> str:
    one_seed = compared[compared.difference_num_seeds < 2]
    parts = []
    for found in ("better", "worse"):
        names = [
            f"{label_of(results, row.variant)} ({points(row.difference_value)})"
            for row in compared.sort_values("difference_value", ascending=found == "worse").itertuples()
            if row.verdict == found
        ]
        if names:
            parts.append(f"{listing(names)} {'is' if len(names) == 1 else 'are'} {found} than {baseline}")
    unclear = compared[(compared.verdict == "cannot tell") & (compared.difference_num_seeds >= 2)]
    if len(unclear):
        names = [label_of(results, name) for name in unclear.variant]
        everything = len(unclear) == len(compared)
        parts.append(
            f"the study cannot tell any variant from {baseline}"
            if everything
            else f"about {listing(names)} it cannot tell"
        )
    if len(one_seed):
        names = [f"{label_of(results, row.variant)} ({points(row.difference_value)})" for row in one_seed.itertuples()]
        parts.append(
            f"{listing(names)} and {baseline} share one seed: differences between seeds are not estimated, so nothing "
            "can be told beyond this seed"
        )
    return "; ".join(parts)
