"""Writes a study's report: HTML that stands alone, Markdown, LaTeX and CSV. Bytes depend on the records only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import facts, sections
from reports.compare import compare_studies
from reports.results import StudyResults, uncollected
from reports.table_texts import latex, summary_table
from reports.tables import RULE_HEADS, RULE_TITLES, accuracy_tables, anchor, rule_table, title_of
from reports.theory_figures import preference_figure, slot_figure
from reports.verdicts import headline_rule, judge
from reports.wording import verdict_sentence

TEMPLATES = Path(__file__).parent / "templates"
PUBLISHED = Path(__file__).resolve().parents[1] / "conf" / "reference" / "published_results.csv"


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies. figures is a folder of SVG files, the page's figures one by one."""

    html: Path
    markdown: Path
    latex: Path
    cells_csv: Path
    verdicts_csv: Path
    questions_csv: Path
    summary: Path
    figures: Path


@uncollected()
def write_report(
    results: StudyResults, out_dir: Path, *, published: Path = PUBLISHED, earlier: StudyResults | None = None
) -> ReportFiles:
    """Write every file of the report into out_dir, which is created.

    earlier: the study as it was last time (reports.results.earlier_study finds it); what changed since then becomes a
    section, regressions first. The same records give the same bytes.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    grid = judge(results)
    changes = compare_studies(earlier, results, grid) if earlier else None
    page = {**page_of(results, grid, published), "changes": changes}
    names = (
        "report.html",
        "report.md",
        "tables.tex",
        "cells.csv",
        "verdicts.csv",
        "questions.csv",
        "summary.txt",
        "figures",
    )
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
    for table, file in (
        (results.cells.drop(columns="parent_id"), files.cells_csv),
        (grid, files.verdicts_csv),
        (facts.question_summary(results), files.questions_csv),
    ):
        table.rename(columns=with_unit).to_csv(file, index=False)
    files.summary.write_text(summary_table(results, grid) + "\n")
    write_figures(page, files.figures)
    return files


def with_unit(column: str) -> str:
    """A column's head in the CSV files: accuracies and differences are shares; other units are in their names."""
    shares = {"accuracy", "low", "high", "difference_value", "difference_low", "difference_high"}
    return f"{column} [0..1]" if column in shares | {"difference_standard_error"} else column


def write_figures(page: dict[str, Any], folder: Path) -> None:
    """The page's figures as files that stand alone, on the page's light paper."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    figures = [*page["headline"], *page["differences"], *page["searches"], *page["training"]]
    for place, figure in enumerate([*figures, page["slots"], page["preference"]]):
        style = "color:#1b1f24;--grid:#e3e5df;background:#fdfdfb;font-family:sans-serif"
        svg = str(figure.svg).replace("<svg ", f'<svg style="{style}" ', 1)
        (folder / f"{place:02d}-{file_part(figure.caption)}.svg").write_text(svg)


def file_part(text: str) -> str:
    """Text as a part of a file's name, of which file systems allow 255 bytes in all."""
    return anchor(text.lower()).encode()[:100].decode(errors="ignore")


def page_of(results: StudyResults, grid: pd.DataFrame, published: Path) -> dict[str, Any]:
    """Everything that the templates place."""
    rule = headline_rule(results)
    tables = accuracy_tables(results, grid, results.scale_rules)
    return {
        "results": results,
        "anchor": anchor,
        "rule_titles": RULE_TITLES,
        "rule_heads": RULE_HEADS,
        "headline_rule": rule,
        "verdict": verdict_sentence(results, grid),
        "facts": facts.facts(results, grid),
        "legends": {place: sections.legend(results, place) for place in ("headline", "contexts", "theory", "training")},
        "headline": sections.accuracy_figures(results, grid, rule),
        "differences": sections.difference_figures(results, grid, rule),
        "tables": tables,
        "tables_by_benchmark": [
            (rule_table(group), group)
            for place in results.places
            if (group := [table for table in tables if (table.benchmark, table.setting) == place])
        ],
        "other_rules": [
            (each, sections.accuracy_figures(results, grid, each)) for each in results.scale_rules if each != rule
        ],
        "by_variant": [
            (title_of(results, *place), sections.variant_figures(results, grid, place[0], rule, place[1]))
            for place in results.places
        ],
        "heat": [
            (
                f"{title_of(results, benchmark)}, {RULE_TITLES.get(each, each).lower()}",
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
        "slots": slot_figure(results),
        "preference": preference_figure(results),
        "kinds": list(sections.kind_tables(results)),
        "effects": list(sections.effect_tables(results)),
        "published": facts.published_rows(results, grid, published),
        "failures": facts.failures(results),
        "error_rows": facts.error_rows(results),
        "doubts": facts.doubts(results, grid),
        "costs": facts.costs(results),
        "trials": facts.trial_details(results),
        "shared_params": facts.shared_params(results),
    }


def markdown_text(value: object) -> str:
    """Text that Markdown and the HTML inside it leave alone."""
    text = str(value).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for char in "`*_[]|#":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())
