"""Tables of a report: their cells as text, made once for every form that they are shown in."""

import re
from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd

from reports.results import StudyResults
from reports.statistics import ALPHA
from reports.verdicts import BEYOND, joined_contexts

RULE_TITLES = {
    "published": "As published",
    "equal": "At equal scale",
    "searched": "Scale searched on validation questions",
}
RULE_HEADS = {"published": "As published", "equal": "Equal scale", "searched": "Scale searched"}
RULE_PHRASES = {
    "published": "at its published scale",
    "equal": "at equal scale",
    "searched": "at its searched scale",
}
MARKS = {"better": "▲", "worse": "▼", "cannot tell": "○"}
# The interval of this comparison alone leaves zero out, the corrected p value does not.
ALONE_MARKS = {"better": "△", "worse": "▽"}


@dataclass(frozen=True)
class TableCell:
    """Numbers are in per cent (accuracy) or points (difference), as text; empty text means no such number.

    incomplete: how many of its questions ended in an error, in words; empty if none did.
    """

    accuracy: str
    interval: str
    difference: str
    difference_interval: str
    mark: str
    verdict: str
    note: str
    fewer_seeds: str
    incomplete: str
    best: bool
    anchor: str


@dataclass(frozen=True)
class TableRow:
    variant: str
    label: str
    baseline: bool
    scales: str
    cells: list[TableCell | None]


@dataclass(frozen=True)
class AccuracyTable:
    """One benchmark and setting at one scale rule: variants down, contexts across, the joined contexts last."""

    benchmark: str
    setting: str
    title: str
    scale_rule: str
    rule_title: str
    heads: list[tuple[str, str]]
    rows: list[TableRow]
    caption: str


def percent(value: float) -> str:
    return "" if isnan(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A signed difference with a true minus sign."""
    return "" if isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def scale_text(values: pd.Series) -> str:
    found = sorted(set(values.dropna()))
    return ", ".join(f"{value:g}" for value in found) if found else "none"


def label_of(results: StudyResults, variant: str) -> str:
    """What a variant is called beside others of its setting: its name without the setting."""
    return str(results.variant(variant)["variant"])


def accuracy_tables(results: StudyResults, grid: pd.DataFrame, scale_rules: list[str]) -> list[AccuracyTable]:
    cells = results.cells
    there = set(zip(cells.benchmark, cells.setting, cells.scale_rule, strict=True))
    return [
        accuracy_table(results, grid, benchmark, scale_rule, setting)
        for benchmark, setting in results.places
        for scale_rule in scale_rules
        if (benchmark, setting, scale_rule) in there
    ]


def title_of(results: StudyResults, benchmark: str, setting: str = "") -> str:
    """A benchmark's title, with the setting where the study has axes."""
    return " · ".join(filter(None, (str(results.record["benchmarks"][benchmark]["title"]), setting)))


def accuracy_table(
    results: StudyResults, grid: pd.DataFrame, benchmark: str, scale_rule: str, setting: str = ""
) -> AccuracyTable:
    rows = grid[(grid.benchmark == benchmark) & (grid.scale_rule == scale_rule) & (grid.setting == setting)]
    record = results.record["benchmarks"][benchmark]
    contexts = results.contexts(benchmark, setting)
    title = title_of(results, benchmark, setting)
    by_place = {(row.variant, row.context): row for row in rows.itertuples()}
    best = rows.groupby("context").accuracy.max().to_dict()
    heads = [
        (f"{multiple:g}×", f"{context} {record['context_unit']}")
        if (multiple := results.multiple(benchmark, context)) == multiple
        else (context, record["context_unit"])
        for context in contexts
    ]
    beyond = len(joined_contexts(results, benchmark, setting)) < len(contexts)
    heads.append(("beyond 1×" if beyond else "all", "mean"))
    variants = [name for name in results.variants if any(cell[0] == name for cell in by_place)]
    table_rows = [
        TableRow(
            variant,
            label_of(results, variant),
            results.is_baseline(variant),
            scales_of(results, benchmark, scale_rule, variant),
            [
                table_cell(
                    by_place.get((variant, context)),
                    best,
                    int(rows.seeds.max()),
                    f"cells-{anchor(benchmark)}-{anchor(variant)}",
                )
                for context in [*contexts, BEYOND]
            ],
        )
        for variant in variants
    ]
    return AccuracyTable(
        benchmark,
        setting,
        title,
        scale_rule,
        RULE_TITLES.get(scale_rule, scale_rule),
        heads,
        table_rows,
        caption(results, rows, title),
    )


def scales_of(results: StudyResults, benchmark: str, scale_rule: str, variant: str) -> str:
    """The scales that the trials were run at under this rule, e.g. "0.5, 0.75"."""
    cells = results.cells
    if not results.variant(variant)["scalable"]:
        return "none"
    return scale_text(
        cells[(cells.benchmark == benchmark) & (cells.scale_rule == scale_rule) & (cells.variant == variant)].scale
    )


def caption(results: StudyResults, rows: pd.DataFrame, title: str) -> str:
    single = rows[rows.context != BEYOND]
    seeds, questions = sorted(set(single.seeds)), sorted(set(single.questions))
    videos = sorted(set(single.videos))
    return (
        f"{title}: accuracy in per cent with its 95 % interval over questions, videos and seeds, and below it the "
        f"difference to {results.baseline} in points. {spread(questions)} questions on "
        f"{spread(videos)} videos a cell and seed; {spread(seeds)} {'seed' if seeds == [1] else 'seeds'}."
    )


def spread(values: list[int]) -> str:
    return "no" if not values else str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def anchor(text: str) -> str:
    """Text as a part of an element's id, which has no spaces."""
    return re.sub(r"[^\w.-]+", "-", text)


def table_cell(row: Any, best: dict[str, float], most_seeds: int, leads_to: str) -> TableCell | None:
    if row is None:
        return None
    note = ""
    if row.difference_num_seeds == 0:
        note = "no seed in common with the baseline"
    elif row.verdict and row.difference_num_seeds == 1:
        note = "one seed: cannot tell beyond this seed"
    elif stands_alone(row):
        note = "its own interval leaves out zero, but not after correction over the grid"
    elif row.verdict and row.difference_num_seeds < most_seeds:
        note = f"on the {row.difference_num_seeds:.0f} seeds that it shares with the baseline"
    return TableCell(
        accuracy=percent(row.accuracy),
        interval=f"{100 * row.low:.0f}–{100 * row.high:.0f}",
        difference=points(row.difference_value),
        difference_interval=""
        if isnan(row.difference_value)
        else f"{points(row.difference_low)} to {points(row.difference_high)}",
        mark=mark_of(row),
        verdict=row.verdict,
        note=note,
        fewer_seeds=f"{row.seeds} of {most_seeds} seeds" if row.seeds < most_seeds else "",
        best=row.accuracy == best[row.context],
        incomplete=f"{row.errors} of {row.answers} unanswered" if row.errors else "",
        anchor=leads_to,
    )


def stands_alone(row: Any) -> bool:
    """Whether the comparison would have a verdict if it were the only one."""
    return bool(row.verdict == "cannot tell" and row.difference_num_seeds >= 2 and row.p_value <= ALPHA)


def mark_of(row: Any) -> str:
    if stands_alone(row):
        return ALONE_MARKS["better" if row.difference_value > 0 else "worse"]
    return MARKS.get(row.verdict, "")


@dataclass(frozen=True)
class RuleTable:
    """One benchmark's joined contexts, scale rules side by side: per rule (scale, cell), None if unfinished."""

    title: str
    heads: list[str]
    column: str
    rows: list[tuple[TableRow, list[tuple[str, TableCell | None]]]]


def rule_table(tables: list[AccuracyTable]) -> RuleTable:
    """The last columns of one benchmark's tables, one table per scale rule."""
    rows_of = [{row.variant: row for row in table.rows} for table in tables]
    variants = list(dict.fromkeys(variant for rows in rows_of for variant in rows))
    rows = []
    for variant in variants:
        found = [rows.get(variant) for rows in rows_of]
        cells = [(row.scales, row.cells[-1]) if row else ("", None) for row in found]
        rows.append((next(row for row in found if row), cells))
    return RuleTable(
        tables[0].title,
        [RULE_HEADS.get(table.scale_rule, table.scale_rule) for table in tables],
        tables[0].heads[-1][0],
        rows,
    )
