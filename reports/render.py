"""Writes a study's report: HTML that stands alone, Markdown, LaTeX and CSV. Bytes depend on the records only."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import sections
from reports.compare import compare_reports
from reports.results import StudyResults
from reports.tables import RULE_HEADS, RULE_TITLES, accuracy_tables, label_of, latex, percent, rule_table
from reports.verdicts import headline_rule, judge
from reports.wording import verdict_sentence

TEMPLATES = Path(__file__).parent / "templates"
PUBLISHED = Path(__file__).resolve().parents[1] / "conf" / "reference" / "published_results.csv"


@dataclass(frozen=True)
class ReportFiles:
    html: Path
    markdown: Path
    latex: Path
    cells_csv: Path
    verdicts_csv: Path
    questions_csv: Path


def write_report(
    results: StudyResults, out_dir: Path, *, published: Path = PUBLISHED, earlier: Path | None = None
) -> ReportFiles:
    """Write every file of the report into out_dir, which is created.

    earlier: the verdicts.csv of a former report of this study; what changed since then becomes a section.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    grid = judge(results)
    changes = compare_reports(pd.read_csv(earlier), grid) if earlier else None
    page = {**page_of(results, grid, published), "changes": changes}
    names = ("report.html", "report.md", "tables.tex", "cells.csv", "verdicts.csv", "questions.csv")
    files = ReportFiles(*(out_dir / name for name in names))
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name != "report.md.j2",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["md"] = markdown_text
    css = Markup((TEMPLATES / "style.css").read_text())
    files.html.write_text(templates.get_template("report.html.j2").render(page, css=css))
    files.markdown.write_text(templates.get_template("report.md.j2").render(page))
    files.latex.write_text("\n".join(latex(table) for table in page["tables"]))
    results.cells.drop(columns="parent_id").to_csv(files.cells_csv, index=False)
    grid.to_csv(files.verdicts_csv, index=False)
    question_summary(results).to_csv(files.questions_csv, index=False)
    return files


def page_of(results: StudyResults, grid: pd.DataFrame, published: Path) -> dict[str, Any]:
    """Everything that the templates place."""
    rule = headline_rule(results)
    tables = accuracy_tables(results, grid)
    return {
        "results": results,
        "label": lambda name: label_of(results, name),
        "rule_titles": RULE_TITLES,
        "rule_heads": RULE_HEADS,
        "headline_rule": rule,
        "verdict": verdict_sentence(results, grid),
        "facts": facts(results, grid),
        "legends": {place: sections.legend(results, place) for place in ("headline", "contexts", "training")},
        "headline": sections.accuracy_figures(results, grid, rule),
        "differences": sections.difference_figures(results, grid, rule),
        "tables": tables,
        "tables_by_benchmark": [
            (rule_table(group), group)
            for benchmark in results.benchmarks
            if (group := [table for table in tables if table.benchmark == benchmark])
        ],
        "other_rules": [
            (each, sections.accuracy_figures(results, grid, each)) for each in results.scale_rules if each != rule
        ],
        "by_variant": [
            (sections.benchmark_title(results, benchmark), sections.variant_figures(results, grid, benchmark, rule))
            for benchmark in results.benchmarks
        ],
        "heat": [
            (
                f"{sections.benchmark_title(results, benchmark)}, {RULE_TITLES.get(each, each).lower()}",
                each == rule,
                maps,
            )
            for benchmark in results.benchmarks
            for each in [rule, *(other for other in results.scale_rules if other != rule)]
            if (maps := sections.heat_maps(results, benchmark, each))
        ],
        "searches": sections.search_figures(results),
        "search_boundaries": sections.search_boundaries(results),
        "training": sections.training_figures(results),
        "slots": sections.slot_figure(results),
        "kinds": list(sections.kind_tables(results)),
        "effects": list(sections.effect_tables(results)),
        "published": published_rows(results, grid, published),
        "failures": failures(results),
        "doubts": doubts(results, grid),
        "costs": costs(results),
        "trials": trial_details(results),
        "shared_params": shared_params(results),
    }


def facts(results: StudyResults, grid: pd.DataFrame) -> list[tuple[str, str]]:
    """The line under the verdict: what was compared, on how much."""
    finished = int((results.cells.status == "FINISHED").sum())
    resolved = grid[grid.difference_standard_error.notna()]
    seeds = ", ".join(str(seed) for seed in sorted(set(results.cells.seed)))
    started = datetime.fromtimestamp(results.started_ms / 1000, UTC)
    half = 100 * ((resolved.difference_high - resolved.difference_low) / 2).median() if len(resolved) else float("nan")
    return [
        ("baseline", label_of(results, results.baseline)),
        ("variants", str(len(results.variants))),
        ("seeds", seeds),
        ("cells", f"{finished} of {results.expected_cells}"),
        ("questions", f"{len(results.questions):,}"),
        ("median interval of a difference", f"± {half:.1f} points"),
        ("started", started.strftime("%Y-%m-%d %H:%M UTC")),
    ]


def question_summary(results: StudyResults) -> pd.DataFrame:
    keys = ["benchmark", "scale_rule", "context_size", "context", "variant", "seed", "kind", "depth"]
    groups = results.questions.assign(
        correct=results.questions.correct.astype(int), errors=results.questions.error.notna().astype(int)
    ).groupby(keys, dropna=False)
    return groups.agg(questions=("id", "size"), correct=("correct", "sum"), errors=("errors", "sum")).reset_index()


def published_rows(results: StudyResults, grid: pd.DataFrame, published: Path) -> list[dict[str, str]]:
    """Published numbers whose benchmark, context and variant this study has too, each beside ours."""
    reference = pd.read_csv(published, dtype=str)
    ours = grid[grid.scale_rule == results.scale_rules[0]]
    rows = []
    for row in ours.itertuples():
        same = reference[
            (reference.benchmark == row.benchmark)
            & (reference.context == row.context)
            & (reference.variant == row.variant)
        ]
        for theirs in same.itertuples():
            rows.append(
                {
                    "benchmark": sections.benchmark_title(results, row.benchmark),
                    "context": row.context,
                    "variant": label_of(results, row.variant),
                    "ours": percent(row.accuracy),
                    "theirs": theirs.score_percent,
                    "model": theirs.model,
                    "source": f"{theirs.source}, {theirs.note}",
                }
            )
    return rows


def failures(results: StudyResults) -> list[dict[str, str]]:
    cells = results.cells[results.cells.status != "FINISHED"]
    trials = results.trials[results.trials.status.isin(["FAILED", "KILLED"])]
    return [
        {"name": row.name, "status": row.status, "error": row.error or "", "run_id": row.run_id}
        for table in (trials, cells)
        for row in table[["name", "status", "error", "run_id"]].fillna("").itertuples(index=False)
    ]


def doubts(results: StudyResults, grid: pd.DataFrame) -> list[str]:
    """What a reader should know before trusting the tables."""
    found = []
    finished = results.cells[results.cells.status == "FINISHED"]
    missing = results.expected_cells - len(finished)
    if missing > 0:
        found.append(
            f"Not finished: {missing} of {results.expected_cells} cells. Their trials are left out of those columns."
        )
    left_out = int(grid.left_out.max())
    if left_out:
        found.append(f"Up to {left_out} questions of a column are left out because not every trial answered them.")
    for field, what in (("errors", "questions that ended in an error"), ("unparsed", "answers that could not be read")):
        count = int(finished[field].fillna(0).sum())
        if count:
            found.append(f"{count} {what} count as wrong.")
    scored = results.questions.groupby(["trial", "benchmark", "context", "scale_rule"]).correct.mean().rename("mean")
    compared = finished.merge(scored.reset_index(), on=["trial", "benchmark", "context", "scale_rule"])
    differing = int(((compared.accuracy - compared["mean"]).abs() > 1e-6).sum())
    if differing:
        found.append(
            f"In {differing} cells the recorded accuracy is not the plain mean of the questions; tables show the mean."
        )
    few = int(grid.videos.min())
    if few < 10:
        found.append(
            f"Some columns rest on {few} videos: intervals are wide because a new video may differ from these."
        )
    if results.cells.seed.nunique() == 1:
        found.append(
            "One seed only: differences between seeds are not estimated and no verdict reaches beyond this seed."
        )
    return found


def costs(results: StudyResults) -> list[dict[str, str]]:
    rows = []
    for variant in results.variants:
        trials, cells = (table[table.variant == variant] for table in (results.trials, results.cells))
        rows.append(
            {
                "variant": label_of(results, variant),
                "trials": str(len(trials)),
                "trials_cached": str(int(trials.cached.fillna(0).sum())),
                "training": duration(trials.duration_s.sum()),
                "cells": str(len(cells)),
                "cells_cached": str(int(cells.cached.fillna(0).sum())),
                "evaluation": duration(cells.duration_s.sum()),
            }
        )
    return rows


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def shared_params(results: StudyResults) -> dict[str, str]:
    """Settings that every trial has in common."""
    params = list(results.trials.params)
    return {
        name: value for name, value in sorted(params[0].items()) if all(other.get(name) == value for other in params)
    }


def trial_details(results: StudyResults) -> list[dict[str, Any]]:
    """Each trial with its own settings and its cells, in the study's order."""
    shared = shared_params(results)
    order = {name: place for place, name in enumerate(results.variants)}
    cells = dict(iter(results.cells.groupby("trial")))
    details = []
    for trial in sorted(results.trials.itertuples(), key=lambda row: (order.get(row.variant, len(order)), row.seed)):
        own = {name: value for name, value in sorted(trial.params.items()) if shared.get(name) != value}
        mine = cells.get(trial.trial, results.cells.iloc[:0]).sort_values(["benchmark", "scale_rule", "context_size"])
        details.append({"trial": trial, "params": own, "cells": list(mine.itertuples())})
    return details


def markdown_text(value: object) -> str:
    """Text that Markdown and the HTML inside it leave alone."""
    text = str(value).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for char in "`*_[]|#":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())
