"""What a report says in words and plain rows: what was run, what failed, what to doubt, what it cost."""

from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from reports.results import StudyResults, when
from reports.tables import label_of, percent, title_of


def facts(results: StudyResults, grid: pd.DataFrame) -> list[tuple[str, str]]:
    """The line under the verdict: what was compared, on how much."""
    finished = int((results.cells.status == "FINISHED").sum())
    resolved = grid[grid.difference_standard_error.notna()]
    seeds = ", ".join(str(seed) for seed in sorted(set(results.cells.seed)))
    half = 100 * ((resolved.difference_high - resolved.difference_low) / 2).median()
    return [
        ("baseline", results.baseline),
        ("variants", str(len({entry["variant"] for entry in results.record["variants"]}))),
        *([("settings", str(len(results.settings)))] if len(results.settings) > 1 else []),
        ("seeds", seeds),
        ("cells", f"{finished} of {results.expected_cells}"),
        ("questions", f"{len(results.questions):,}"),
        *([("median interval of a difference", f"± {half:.1f} points")] if len(resolved) else []),
        ("started", when(results)),
    ]


def question_summary(results: StudyResults) -> pd.DataFrame:
    """Counts by benchmark, context, variant, seed, kind of question and depth: rows of questions.csv."""
    keys = ["benchmark", "scale_rule", "context_size", "context", "variant", "seed", "kind", "depth"]
    groups = results.questions.assign(
        correct=results.questions.correct.astype(int), errors=results.questions.error.notna().astype(int)
    ).groupby(keys, dropna=False)
    return groups.agg(questions=("id", "size"), correct=("correct", "sum"), errors=("errors", "sum")).reset_index()


def published_rows(results: StudyResults, grid: pd.DataFrame, published: Path) -> list[dict[str, str]]:
    """Published numbers whose benchmark, context and variant this study has too, each beside ours.

    A published "8k" is a budget of 8000 or of 8192.
    """
    reference = pd.read_csv(published, dtype=str)
    ours = grid[grid.scale_rule == results.scale_rules[0]]
    rows = []
    known: dict[tuple[str, str, str], list[Any]] = {}
    for theirs in reference.itertuples():
        for spelling in context_spellings(str(theirs.context)):
            known.setdefault((str(theirs.benchmark), spelling, str(theirs.variant)), []).append(theirs)
    for row in ours.itertuples():
        for theirs in known.get((row.benchmark, row.context, label_of(results, row.variant)), []):
            rows.append(
                {
                    "benchmark": title_of(results, row.benchmark, row.setting),
                    "context": row.context,
                    "variant": label_of(results, row.variant),
                    "ours": percent(row.accuracy),
                    "theirs": theirs.score_percent,
                    "model": theirs.model,
                    "source": f"{theirs.source}, {theirs.note}",
                }
            )
    return rows


def context_spellings(label: str) -> set[str]:
    """ "8k" as 8k, 8000 and 8192; other labels as themselves."""
    thousands = label.removesuffix("k")
    if thousands == label or not thousands.isdecimal():
        return {label}
    return {label, str(1000 * int(thousands)), str(1024 * int(thousands))}


def error_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Questions of finished cells that ended in an error, by cause: how often, in which cells, for example which."""
    failed = results.questions[results.questions.error.notna()]
    rows = []
    for (benchmark, video, error), group in failed.groupby(["benchmark", "video", "error"], dropna=False):
        cells = group[["trial", "context", "scale_rule"]].drop_duplicates()
        rows.append(
            {
                "benchmark": title_of(results, str(benchmark)),
                "video": video,
                "error": error,
                "answers": len(group),
                "cells": len(cells),
                "example": group.id.iloc[0],
            }
        )
    return sorted(rows, key=lambda row: (-row["answers"], row["benchmark"], str(row["video"]), row["error"]))


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
    if results.quarantine and results.quarantine.quarantined:
        kept = results.quarantine
        found.append(f"{kept.quarantined} of {kept.records} records of the data could not be used: see Data.")
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
    """Time and GPU hours by variant, counting what came from the store with what it cost when it ran.

    An evaluation that answers cells of several scale rules (the same scale, or none) counts once.
    """
    rows = []
    for variant in results.variants:
        trials, cells = (table[table.variant == variant] for table in (results.trials, results.cells))
        answered = cells.drop_duplicates(["trial", "context", "fingerprint"])
        hours = (trials.gpu_hours, trials["scale_search/gpu_hours"], answered.gpu_hours)
        rows.append(
            {
                "variant": variant,
                "trials": str(len(trials)),
                "trials_cached": str(int(trials.cached.fillna(0).sum())),
                "training": duration(trials.duration_s.sum()),
                "search": duration(trials["scale_search/duration_s"].sum(min_count=1)),
                "cells": str(len(cells)),
                "cells_cached": str(int(cells.cached.fillna(0).sum())),
                "evaluation": duration(answered.duration_s.sum()),
                "gpu_hours": f"{sum(spent.sum() for spent in hours):.1f}",
            }
        )
    return rows


def duration(seconds: float) -> str:
    return (
        "–"
        if isnan(seconds)
        else f"{seconds:.0f} s"
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
