"""Two trials side by side, and two reports of one study: what changed, regressions first."""

from dataclasses import dataclass, field, replace

import pandas as pd

from reports.results import StudyResults, when
from reports.statistics import Column, Estimate, contrast
from reports.tables import percent, points, title_of
from reports.verdicts import judge

# The smallest change of an accuracy (0..1) that is told where the verdict stays.
LEAST_CHANGE = 0.005


@dataclass(frozen=True)
class CellComparison:
    """One cell of both trials on the questions that both answered. None where one of them has no such cell."""

    benchmark: str
    context: str
    scale_rule: str
    accuracy_a: float | None
    accuracy_b: float | None
    questions: int
    only_a: int
    only_b: int
    difference: Estimate | None


@dataclass(frozen=True)
class TrialComparison:
    """settings: name -> (value in a, value in b), where they differ. Differences are b minus a, clustered by video."""

    trial_a: str
    trial_b: str
    settings: dict[str, tuple[str, str]]
    cells: list[CellComparison]

    def text(self) -> str:
        """Plain text for the terminal."""
        lines = [f"a: {self.trial_a}", f"b: {self.trial_b}", ""]
        lines += [f"{name}: {a} | {b}" for name, (a, b) in self.settings.items()] or ["the same settings"]
        rows = [["benchmark", "context", "rule", "a", "b", "b - a", "95 % interval", "only a", "only b"]]
        for cell in self.cells:
            found = cell.difference
            rows.append(
                [
                    *(cell.benchmark, cell.context, cell.scale_rule),
                    *("-" if value is None else percent(value) for value in (cell.accuracy_a, cell.accuracy_b)),
                    points(found.value) if found else "-",
                    f"{points(found.low)} to {points(found.high)}" if found else "-",
                    *(str(cell.only_a), str(cell.only_b)),
                ]
            )
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines += ["", *("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)]
        lines += [
            "",
            "Two trials are two seeds at most: the intervals hold for these two models, not for their variants.",
        ]
        return "\n".join(line.rstrip() for line in lines)


def find_trial(results: StudyResults, name: str) -> pd.Series:
    """The trial with this name, run name or run id (a unique beginning of one is enough)."""
    trials = results.trials
    exact = trials[(trials.trial == name) | (trials.name == name)]
    found = exact if len(exact) else trials[trials.run_id.str.startswith(name)]
    if len(found) != 1:
        known = ", ".join(sorted(trials.trial))
        raise ValueError(f"{len(found)} trials of study {results.study!r} are called {name!r}; its trials are {known}")
    return found.iloc[0]


def compare(results: StudyResults, trial_a: str, trial_b: str) -> TrialComparison:
    """Settings that differ, and every cell on the questions that both trials answered."""
    a, b = find_trial(results, trial_a), find_trial(results, trial_b)
    key = ["benchmark", "context_size", "context", "scale_rule"]
    answers_a, answers_b = (results.questions[results.questions.trial == trial.trial].groupby(key) for trial in (a, b))
    cells = []
    for place in sorted(set(answers_a.groups) | set(answers_b.groups)):
        benchmark, _, context, scale_rule = place
        of_a, of_b = (group.get_group(place) if place in group.groups else None for group in (answers_a, answers_b))
        cells.append(compare_cell((benchmark, context, scale_rule), of_a, of_b))
    return TrialComparison(a["name"], b["name"], differing_settings(a, b), cells)


def compare_cell(place: tuple[str, str, str], a: pd.DataFrame | None, b: pd.DataFrame | None) -> CellComparison:
    if a is None or b is None:
        accuracy_a, accuracy_b = (None if side is None else float(side.correct.mean()) for side in (a, b))
        return CellComparison(*place, accuracy_a, accuracy_b, 0, 0, 0, None)
    both = a.merge(b[["id", "correct"]], on="id", suffixes=("_a", "_b"))
    correct = both[["correct_a", "correct_b"]].to_numpy(dtype=float).T
    difference = (
        contrast(Column(correct[:, None, :], both.video.to_numpy(dtype=object)), [-1, 1]) if len(both) else None
    )
    only_a, only_b = int((correct[0] > correct[1]).sum()), int((correct[1] > correct[0]).sum())
    return CellComparison(
        *place, float(correct[0].mean()), float(correct[1].mean()), len(both), only_a, only_b, difference
    )


def differing_settings(a: pd.Series, b: pd.Series) -> dict[str, tuple[str, str]]:
    names = sorted({*a.params, *b.params})
    pairs = {name: (str(a.params.get(name, "-")), str(b.params.get(name, "-"))) for name in names}
    pairs |= {name: (str(a[name]), str(b[name])) for name in ("variant", "seed", "model", "recipe")}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Change:
    """One table cell whose verdict or accuracy differs between two reports; values are accuracies (0..1)."""

    benchmark: str
    scale_rule: str
    context: str
    variant: str
    before: float
    after: float
    verdict_before: str
    verdict_after: str

    @property
    def rank(self) -> int:
        """Steps that the verdict rose; below zero is a regression."""
        order = {"worse": 0, "cannot tell": 1, "baseline": 1, "better": 2}
        return order[self.verdict_after] - order[self.verdict_before]

    def text(self) -> str:
        where = f"{self.benchmark} {self.context} {self.scale_rule}"
        said = f", {self.verdict_before} → {self.verdict_after}" if self.rank else ""
        return (
            f"{self.variant} on {where}: {percent(self.before)} → {percent(self.after)} "
            f"({points(self.after - self.before)}){said}"
        )


@dataclass(frozen=True)
class ReportChanges:
    """changes: regressions first, then what fell most. added, removed: table cells that only one report has.

    notes: what makes the two hard to compare, and which two they are.
    """

    changes: list[Change]
    added: list[str]
    removed: list[str]
    notes: list[str] = field(default_factory=list)


def compare_studies(before: StudyResults, after: StudyResults, grid: pd.DataFrame) -> ReportChanges:
    """What changed between two runs of one study; grid holds the verdicts of the later one.

    A benchmark whose questions or scorer are others now is named: its accuracies changed with what was asked.
    """
    found = compare_reports(judge(before), grid)
    notes = [f"Compared with run {before.run_id}, {when(before)}."]
    for benchmark in after.benchmarks:
        for name, what in (("question_set", "questions"), ("scorer", "scorer")):
            old, new = (side.record["benchmarks"].get(benchmark, {}).get(name) for side in (before, after))
            if old is not None and old != new:
                notes.append(f"{title_of(after, benchmark)} has other {what} now ({new}, then {old}).")
    return replace(found, notes=notes)


def compare_reports(before: pd.DataFrame, after: pd.DataFrame) -> ReportChanges:
    """Changes between two grids of verdicts (judge's, or verdicts.csv read back)."""
    key = ["benchmark", "scale_rule", "context", "variant"]
    columns = [*key, "accuracy", "verdict"]
    old, new = (grid[columns].fillna({"verdict": ""}).astype({"context": str}) for grid in (before, after))
    joined = old.merge(new, on=key, how="outer", suffixes=("_before", "_after"), indicator=True)
    both = joined[joined["_merge"] == "both"]
    changes = [
        Change(
            benchmark=row.benchmark,
            scale_rule=row.scale_rule,
            context=row.context,
            variant=row.variant,
            before=row.accuracy_before,
            after=row.accuracy_after,
            verdict_before=row.verdict_before or "baseline",
            verdict_after=row.verdict_after or "baseline",
        )
        for row in both.itertuples()
    ]
    kept = [change for change in changes if change.rank or abs(change.after - change.before) >= LEAST_CHANGE]
    kept.sort(key=lambda change: (change.rank, change.after - change.before, change.text()))
    names = {side: joined[joined["_merge"] == side] for side in ("left_only", "right_only")}
    added, removed = ([" ".join(row) for row in names[side][key].to_numpy()] for side in ("right_only", "left_only"))
    return ReportChanges(kept, added, removed)
