"""What each section of a report shows: figures as SVG, rows as text. Templates only place it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import isnan, nan
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import figures
from reports.ablation import AXES, axis_effects
from reports.figures import Look
from reports.results import StudyResults
from reports.statistics import contrast, mean_estimates
from reports.tables import RULE_TITLES, label_of, mark_of, percent, points, title_of
from reports.verdicts import BEYOND, ask, headline_rule, joined_contexts, questions_under


@dataclass(frozen=True)
class Figure:
    """One panel: its SVG, its title and a smaller second line."""

    svg: Markup
    caption: str
    detail: str = ""


def page_looks(results: StudyResults) -> dict[str, Look]:
    """One look per variant, the same at every setting."""
    own = {entry["name"]: entry["variant"] for entry in results.record["variants"]}
    by_variant = figures.looks(list(dict.fromkeys(own.values())), results.baseline)
    return {name: by_variant[variant] for name, variant in own.items()}


def legend(results: StudyResults, place: str) -> list[tuple[Markup, str]]:
    """Line and label of every variant; place keeps the ids of one legend apart from those of another on the page."""
    looks = page_looks(results)
    by_label = {label_of(results, name): looks[name] for name in results.variants}
    return [(Markup(figures.swatch(f"{place}-{label}", look)), label) for label, look in by_label.items()]


def accuracy_figures(results: StudyResults, grid: pd.DataFrame, scale_rule: str) -> list[Figure]:
    """All variants in one panel per benchmark and setting, the band for the baseline alone."""
    found = []
    for benchmark, setting in results.places:
        rows = accuracy_rows(results, grid, benchmark, scale_rule, setting)
        if rows.empty:
            continue
        ends = rows[rows.context == results.contexts(benchmark, setting)[-1]].sort_values("accuracy", ascending=False)
        said = ", ".join(f"{label_of(results, row.variant)} {percent(row.accuracy)}" for row in ends.itertuples())
        title = f"{title_of(results, benchmark, setting)}, {RULE_TITLES.get(scale_rule, scale_rule).lower()}"
        alt = f"Accuracy against context length on {title}. At the longest context, per cent: {said}."
        name = "-".join(filter(None, ("accuracy", benchmark, setting, scale_rule)))
        banded = {variant for variant in rows.variant if results.is_baseline(variant)}
        svg = accuracy_panel(results, benchmark, name, alt, rows, banded)
        found.append(Figure(Markup(svg), title))
    return found


def variant_figures(
    results: StudyResults, grid: pd.DataFrame, benchmark: str, scale_rule: str, setting: str
) -> list[Figure]:
    """One panel per variant, beside the baseline, both with their bands."""
    rows = accuracy_rows(results, grid, benchmark, scale_rule, setting)
    found = []
    for variant in results.variants:
        if results.is_baseline(variant) or variant not in set(rows.variant):
            continue
        pair = {variant, results.baseline_of(variant)}
        mine = rows[rows.variant == variant].sort_values("size")
        said = ", ".join(
            f"{row.context}: {percent(row.accuracy)} ({percent(row.low)} to {percent(row.high)})"
            for row in mine.itertuples()
        )
        label = label_of(results, variant)
        alt = f"{label} beside {results.baseline}. Accuracy of {label} by context, per cent: {said}."
        name = f"accuracy-{benchmark}-{scale_rule}-{variant}"
        svg = accuracy_panel(results, benchmark, name, alt, rows[rows.variant.isin(pair)], pair, size=(3.4, 2.5))
        found.append(Figure(Markup(svg), label))
    return found


def accuracy_rows(
    results: StudyResults, grid: pd.DataFrame, benchmark: str, scale_rule: str, setting: str
) -> pd.DataFrame:
    rows = grid[(grid.benchmark == benchmark) & (grid.scale_rule == scale_rule) & (grid.setting == setting)]
    rows = rows[rows.context != BEYOND]
    sizes = results.cells.drop_duplicates("context").set_index("context").context_size
    return rows.assign(size=rows.context.map(sizes))


def accuracy_panel(
    results: StudyResults,
    benchmark: str,
    name: str,
    alt: str,
    rows: pd.DataFrame,
    banded: set[str],
    size: tuple[float, float] = (4.6, 3.3),
) -> str:
    record = results.record["benchmarks"][benchmark]
    return figures.accuracy_by_context(
        name,
        alt,
        rows,
        page_looks(results),
        unit=record["context_unit"],
        chance=record["chance"],
        train_length=record["train_length"],
        banded=banded,
        size=size,
    )


def difference_figures(results: StudyResults, grid: pd.DataFrame, scale_rule: str) -> list[Figure]:
    """Differences to the baseline beyond the training length, one panel per benchmark and setting."""
    looks = page_looks(results)
    found = []
    for benchmark, setting in results.places:
        here = grid[(grid.benchmark == benchmark) & (grid.scale_rule == scale_rule) & (grid.context == BEYOND)]
        here = here[(here.setting == setting) & here.difference_value.notna()]
        if here.empty:
            continue
        rows = [
            (
                f"{label_of(results, row.variant)} {mark_of(row)}",
                *(row.difference_value, row.difference_low, row.difference_high),
                *(looks[row.variant].colour, looks[row.variant].marker),
            )
            for row in here.itertuples()
        ]
        said = "; ".join(f"{row[0]} {points(row[1])} ({points(row[2])} to {points(row[3])})" for row in rows)
        title = title_of(results, benchmark, setting)
        alt = f"Difference to {results.baseline} on {title} in points: {said}."
        name = "-".join(filter(None, ("difference", benchmark, setting, scale_rule)))
        svg = figures.forest(name, alt, rows)
        found.append(Figure(Markup(svg), f"{title}: difference to {results.baseline}"))
    return found


@dataclass(frozen=True)
class HeatCell:
    text: str
    background: str
    ink: str


@dataclass(frozen=True)
class HeatMap:
    """Per cent correct by needle depth (rows) and context (columns)."""

    caption: str
    contexts: list[str]
    unit: str
    rows: list[tuple[str, list[HeatCell | None]]]


def heat_maps(results: StudyResults, benchmark: str, scale_rule: str) -> list[HeatMap]:
    """Depth x context of every variant, where the benchmark's questions have a depth."""
    asked = questions_under(results, benchmark, scale_rule).dropna(subset=["depth"])
    means = asked.assign(correct=asked.correct.astype(float)).groupby(["variant", "depth", "context"]).correct.mean()
    contexts, depths = results.contexts(benchmark), sorted(set(asked.depth))
    return [
        HeatMap(
            variant,
            contexts,
            results.record["benchmarks"][benchmark]["context_unit"],
            [
                (f"{depth:g}", [heat_cell(means.get((variant, depth, context), nan)) for context in contexts])
                for depth in depths
            ],
        )
        for variant in results.variants
        if variant in means.index.get_level_values("variant")
    ]


def heat_cell(value: float) -> HeatCell | None:
    return None if isnan(value) else HeatCell(f"{100 * value:.0f}", *figures.heat_colours(value))


def search_figures(results: StudyResults) -> list[Figure]:
    looks = page_looks(results)
    found = []
    for variant in results.variants:
        mine = results.searches[results.searches.variant == variant]
        if mine.empty:
            continue
        chosen = ", ".join(
            f"seed {row.seed}: {row.scale:g}" for row in mine[mine.chosen].sort_values("seed").itertuples()
        )
        alt = f"Validation accuracy of {variant} against its temporal scale. Chosen: {chosen}."
        published = results.variant(variant)["published_scale"]
        svg = figures.scale_response(f"scale-{variant}", alt, mine, looks[variant], published)
        found.append(Figure(Markup(svg), variant, f"chosen: {chosen}"))
    return found


def search_boundaries(results: StudyResults) -> str:
    """Whether the chosen scales lie inside the searched range or on its edge, of searches that tried several."""
    if results.searches.empty:
        return ""
    edges = results.searches.groupby("trial").scale.agg(["min", "max"])
    edges = edges[edges["min"] < edges["max"]]
    if edges.empty:
        return "Every search tried a single scale, which it had to choose."
    chosen = results.searches[results.searches.chosen].set_index("trial").scale.reindex(edges.index)
    low, high = (int((chosen == edges[end]).sum()) for end in ("min", "max"))
    return (
        f"Of {len(chosen)} searches {len(chosen) - low - high} chose a scale inside the range that they tried, "
        f"{low} the smallest and {high} the largest."
    )


def training_figures(results: StudyResults) -> list[Figure]:
    wanted = (
        ("train/loss", "training loss"),
        ("train/held_out_loss", "loss on held-out rows"),
        ("train/accuracy", "training accuracy"),
    )
    found = []
    for (metric, what), setting in product(wanted, results.settings):
        curves = results.curves[(results.curves.metric == metric) & (results.curves.setting == setting)]
        if curves.empty:
            continue
        title = " · ".join(filter(None, (what, setting)))
        last = curves[curves.step == curves.step.max()].groupby("variant").value.mean()
        said = ", ".join(f"{label_of(results, name)} {last[name]:.3g}" for name in results.variants if name in last)
        alt = f"{title.capitalize()} against step. At the last step: {said}."
        svg = figures.training_curve(f"curve-{title}", alt, curves, page_looks(results), what)
        found.append(Figure(Markup(svg), title))
    return found


def kind_tables(results: StudyResults) -> Iterator[dict[str, Any]]:
    """Accuracy beyond the training length by kind of question, at the headline scale rule."""
    rule = headline_rule(results)
    for benchmark, setting in results.places:
        asked = questions_under(results, benchmark, rule, setting)
        kinds = sorted(asked.kind.dropna().unique())
        if len(kinds) < 2:
            continue
        cells: dict[str, dict[str, dict[str, str]]] = {}
        for kind in kinds:
            column = ask(results, asked[asked.kind == kind], joined_contexts(results, benchmark, setting))
            for variant, mean in zip(column.variants, mean_estimates(column.column), strict=True):
                shift, baseline = "", results.baseline_of(variant)
                if variant != baseline and baseline in column.variants:
                    found = contrast(column.column, column.weights({variant: 1.0, baseline: -1.0}))
                    if not isnan(found.value):
                        shift = f"{points(found.value)} ({points(found.low)} to {points(found.high)})"
                text = {
                    "accuracy": percent(mean.value),
                    "interval": f"{100 * mean.low:.0f}–{100 * mean.high:.0f}",
                    "shift": shift,
                }
                cells.setdefault(variant, {})[kind] = text
        rows = [
            (label_of(results, name), [cells[name].get(kind) for kind in kinds])
            for name in results.variants
            if name in cells
        ]
        yield {"title": title_of(results, benchmark, setting), "kinds": kinds, "rows": rows}


def effect_tables(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One table per benchmark: an effect a row, the scale rules side by side."""
    for benchmark in results.benchmarks:
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for scale_rule in results.scale_rules:
            for effect in axis_effects(results, benchmark, scale_rule):
                pairs = "; ".join(f"{one} → {other}" for one, other in effect.pairs)
                row = {
                    "axis": AXES.get(effect.axis, effect.axis),
                    "change": f"{effect.before} → {effect.after}",
                    "pairs": pairs,
                    "rules": {},
                }
                found = rows.setdefault((effect.axis, effect.before, effect.after, *effect.settings), row)
                difference = effect.difference
                if not isnan(difference.value):
                    interval = f"{points(difference.low)} to {points(difference.high)}"
                    found["rules"][scale_rule] = {"difference": points(difference.value), "interval": interval}
        if rows:
            yield {"title": title_of(results, benchmark), "rows": list(rows.values())}
