"""What each section of a report shows: figures as SVG, rows as text. Templates only place it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import figures
from reports.ablation import AXES, axis_effects
from reports.figures import Look
from reports.results import StudyResults
from reports.statistics import contrast, mean_estimates
from reports.tables import MARKS, RULE_TITLES, label_of, percent, points
from reports.verdicts import BEYOND, ask, headline_rule, joined_contexts, questions_under


@dataclass(frozen=True)
class Figure:
    """One panel: its SVG, the line under it, and the scale rule it shows ("" where none applies)."""

    svg: Markup
    caption: str
    scale_rule: str = ""


def page_looks(results: StudyResults) -> dict[str, Look]:
    return figures.looks(results.variants, results.baseline)


def legend(results: StudyResults) -> list[tuple[Markup, str]]:
    looks = page_looks(results)
    return [(Markup(figures.swatch(looks[name])), label_of(results, name)) for name in results.variants]


def benchmark_title(results: StudyResults, benchmark: str) -> str:
    return str(results.record["benchmarks"][benchmark]["title"])


def accuracy_figures(results: StudyResults, grid: pd.DataFrame, scale_rule: str) -> list[Figure]:
    found = []
    for benchmark in results.benchmarks:
        rows = grid[(grid.benchmark == benchmark) & (grid.scale_rule == scale_rule) & (grid.context != BEYOND)]
        if rows.empty:
            continue
        record = results.record["benchmarks"][benchmark]
        sizes = results.cells.drop_duplicates("context").set_index("context").context_size
        ends = rows[rows.context == results.contexts(benchmark)[-1]].sort_values("accuracy", ascending=False)
        said = ", ".join(f"{label_of(results, row.variant)} {percent(row.accuracy)}" for row in ends.itertuples())
        title = f"{record['title']}, {RULE_TITLES.get(scale_rule, scale_rule).lower()}"
        svg = figures.accuracy_by_context(
            f"accuracy-{benchmark}-{scale_rule}",
            f"Accuracy against context length on {title}. At the longest context, per cent: {said}.",
            rows.assign(size=rows.context.map(sizes)),
            page_looks(results),
            unit=record["context_unit"],
            chance=record.get("chance"),
            train_length=record["train_length"],
        )
        found.append(Figure(Markup(svg), title, scale_rule))
    return found


def difference_figures(results: StudyResults, grid: pd.DataFrame, scale_rule: str) -> list[Figure]:
    """Differences to the baseline beyond the training length, one panel per benchmark."""
    looks = page_looks(results)
    found = []
    for benchmark in results.benchmarks:
        here = grid[(grid.benchmark == benchmark) & (grid.scale_rule == scale_rule) & (grid.context == BEYOND)]
        here = here[here.difference_value.notna()]
        if here.empty:
            continue
        rows = [
            (
                f"{label_of(results, row.variant)} {MARKS.get(row.verdict, '')}",
                *(row.difference_value, row.difference_low, row.difference_high),
                *(looks[row.variant].colour, looks[row.variant].marker),
            )
            for row in here.itertuples()
        ]
        said = "; ".join(f"{row[0]} {points(row[1])} ({points(row[2])} to {points(row[3])})" for row in rows)
        title = benchmark_title(results, benchmark)
        alt = f"Difference to {label_of(results, results.baseline)} on {title} in points: {said}."
        svg = figures.forest(f"difference-{benchmark}-{scale_rule}", alt, rows)
        found.append(Figure(Markup(svg), f"{title}: difference to {label_of(results, results.baseline)}", scale_rule))
    return found


def heat_maps(results: StudyResults, benchmark: str, scale_rule: str) -> list[Figure]:
    """Depth x context of every variant, where the benchmark's questions have a depth."""
    asked = questions_under(results, benchmark, scale_rule).dropna(subset=["depth"])
    unit = results.record["benchmarks"][benchmark]["context_unit"]
    found = []
    for variant in results.variants:
        mine = asked[asked.variant == variant]
        if mine.empty:
            continue
        table = mine.assign(correct=mine.correct.astype(float)).pivot_table(
            index="depth", columns="context", values="correct", aggfunc="mean"
        )
        table = table[[context for context in results.contexts(benchmark) if context in table.columns]]
        label = label_of(results, variant)
        rows = "; ".join(
            f"depth {depth:g}: {', '.join(percent(value) for value in row)}"
            for depth, row in zip(table.index, table.to_numpy(), strict=True)
        )
        alt = f"Accuracy of {label} by needle depth at contexts {', '.join(table.columns)}, per cent. {rows}."
        svg = figures.heat_map(f"heat-{benchmark}-{scale_rule}-{variant}", alt, table, unit)
        found.append(Figure(Markup(svg), label, scale_rule))
    return found


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
        alt = f"Validation accuracy of {label_of(results, variant)} against its temporal scale. Chosen: {chosen}."
        published = results.variant(variant).get("published_scale")
        svg = figures.scale_response(f"scale-{variant}", alt, mine, looks[variant], published)
        found.append(Figure(Markup(svg), f"{label_of(results, variant)}. Chosen: {chosen}"))
    return found


def search_boundaries(results: StudyResults) -> str:
    """Whether the chosen scales lie inside the searched range or on its edge."""
    if results.searches.empty:
        return ""
    edges = results.searches.groupby("trial").scale.agg(["min", "max"])
    chosen = results.searches[results.searches.chosen].set_index("trial").scale
    low = int((chosen == edges["min"].reindex(chosen.index)).sum())
    high = int((chosen == edges["max"].reindex(chosen.index)).sum())
    return (
        f"Of {len(chosen)} searches {len(chosen) - low - high} chose a scale inside the range that they tried, "
        f"{low} the smallest and {high} the largest."
    )


def training_figures(results: StudyResults) -> list[Figure]:
    wanted = (("train/loss", "training loss"), ("train/accuracy", "training accuracy"))
    found = []
    for metric, title in wanted:
        curves = results.curves[results.curves.metric == metric]
        if curves.empty:
            continue
        last = curves[curves.step == curves.step.max()].groupby("variant").value.mean()
        said = ", ".join(f"{label_of(results, name)} {last[name]:.3g}" for name in results.variants if name in last)
        alt = f"{title.capitalize()} against step. At the last step: {said}."
        svg = figures.training_curve(f"curve-{metric}", alt, curves, page_looks(results), title)
        found.append(Figure(Markup(svg), title))
    return found


def slot_figure(results: StudyResults) -> Figure | None:
    rows = []
    for variant in results.record["variants"]:
        slots = variant.get("slot_axes") or []
        label = label_of(results, variant["name"])
        if slots and isinstance(slots[0], list):
            rows += [(f"{label}, head {head}", axes) for head, axes in enumerate(slots)]
        elif slots:
            rows.append((label, slots))
    if not rows:
        return None
    names = {0: "t", 1: "h", 2: "w", -1: "unrotated"}
    said = "; ".join(
        f"{label}: " + ", ".join(f"{slots.count(axis)} {name}" for axis, name in names.items() if axis in slots)
        for label, slots in rows
    )
    svg = figures.slot_map("slots", f"Which axis each rotary slot follows. {said}.", rows)
    return Figure(Markup(svg), "Orange: time. Blue: rows. Green: columns. Outlined: not rotated.")


def kind_tables(results: StudyResults) -> Iterator[dict[str, Any]]:
    """Accuracy beyond the training length by kind of question, at the headline scale rule."""
    rule = headline_rule(results)
    for benchmark in results.benchmarks:
        asked = questions_under(results, benchmark, rule)
        kinds = sorted(asked.kind.dropna().unique())
        if len(kinds) < 2:
            continue
        cells: dict[str, dict[str, dict[str, str]]] = {}
        for kind in kinds:
            column = ask(results, asked[asked.kind == kind], joined_contexts(results, benchmark))
            for variant, mean in zip(column.variants, mean_estimates(column.column), strict=True):
                shift = ""
                if variant != results.baseline and results.baseline in column.variants:
                    found = contrast(column.column, column.weights(**{variant: 1.0, results.baseline: -1.0}))
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
        yield {"title": benchmark_title(results, benchmark), "kinds": kinds, "rows": rows}


def effect_tables(results: StudyResults) -> Iterator[dict[str, Any]]:
    for benchmark in results.benchmarks:
        for scale_rule in results.scale_rules:
            effects = axis_effects(results, benchmark, scale_rule)
            if effects:
                rows = [
                    {
                        "axis": AXES[effect.axis],
                        "change": f"{effect.before} → {effect.after}",
                        "difference": points(effect.difference.value),
                        "interval": f"{points(effect.difference.low)} to {points(effect.difference.high)}",
                        "pairs": "; ".join(
                            f"{label_of(results, one)} → {label_of(results, other)}" for one, other in effect.pairs
                        ),
                    }
                    for effect in effects
                ]
                title = f"{benchmark_title(results, benchmark)}, {RULE_TITLES.get(scale_rule, scale_rule).lower()}"
                yield {"title": title, "rows": rows}
