"""The grid of a study's verdicts: one row per benchmark, scale rule, context and variant."""

from dataclasses import asdict, dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from reports.results import StudyResults
from reports.statistics import Column, Estimate, contrast, holm, mean_estimates, verdict

# Scale rules in the order in which a report shows them; a variant without a scale is shown with the first's.
DEFAULT_RULE = "published"
# The column of a table that joins the contexts beyond the training length, or all when none is.
BEYOND = "beyond"


@dataclass(frozen=True)
class Asked:
    """One column's answers with the names of its axes.

    left_out counts questions that not every trial answered; errors, by variant, the column's answers that are missing
    for an error and count as wrong. published: the variants whose every answer was given under the rule "published".
    """

    column: Column
    variants: list[str]
    seeds: list[int]
    left_out: int
    errors: dict[str, int]
    published: set[str]

    def weights(self, by_variant: dict[str, float]) -> list[float]:
        return [by_variant.get(variant, 0.0) for variant in self.variants]


def questions_under(results: StudyResults, benchmark: str, scale_rule: str, setting: str | None = None) -> pd.DataFrame:
    """Questions of one benchmark at one scale rule, at one setting of the study's axes or (None) at all.

    Variants without a scale answer alike under every rule: they bring their published cells, so that one comparison is
    not made twice, and the rule's own where the study leaves the published one out.
    """
    asked = results.questions[results.questions.benchmark == benchmark]
    if setting is not None:
        asked = asked[asked.setting == setting]
    of_rule = asked.scale_rule == scale_rule
    if not of_rule.any():
        return asked[of_rule]
    fixed = asked.variant.isin([variant["name"] for variant in results.record["variants"] if not variant["scalable"]])
    brought = pd.concat([asked[fixed & (asked.scale_rule == DEFAULT_RULE)], asked[fixed & of_rule]])
    return pd.concat([asked[of_rule & ~fixed], brought.drop_duplicates(["variant", "seed", "context", "id"])])


def joined_contexts(results: StudyResults, benchmark: str, setting: str | None = None) -> list[str]:
    """The contexts longer than the training length; all of them when none is, or there is no such length."""
    contexts = results.contexts(benchmark, setting)
    return [context for context in contexts if results.multiple(benchmark, context) > 1] or contexts


def ask(results: StudyResults, questions: pd.DataFrame, contexts: list[str]) -> Asked:
    """Arrange the answers at the given contexts as (K, S, Q), variants in the study's order.

    A trial counts when all of these contexts are finished; a question counts when every such trial answered it.
    """
    trial, question = ["variant", "seed"], ["context", "id"]
    here = questions[questions.context.isin(contexts)]
    here = here[here.groupby(trial).context.transform("nunique") == len(contexts)]
    answers = here.assign(correct=here.correct.astype(float)).pivot(index=trial, columns=question, values="correct")
    complete = answers.dropna(axis=1)
    variants = [name for name in results.variants if name in complete.index.get_level_values("variant")]
    seeds = sorted(set(complete.index.get_level_values("seed")))
    correct = np.full((len(variants), len(seeds), complete.shape[1]), nan)
    for (variant, seed), row in zip(complete.index, complete.to_numpy(), strict=True):
        correct[variants.index(variant), seeds.index(seed)] = row
    video_of = here.drop_duplicates(question).set_index(question).video
    videos = video_of.loc[complete.columns].to_numpy(dtype=object)
    failed = here[here.error.notna()].set_index(question)
    errors = failed[failed.index.isin(complete.columns)].groupby("variant").size().to_dict()
    published = set(variants) - set(here.variant[here.scale_rule != DEFAULT_RULE])
    return Asked(Column(correct, videos), variants, seeds, answers.shape[1] - complete.shape[1], errors, published)


def judge(results: StudyResults) -> pd.DataFrame:
    """Accuracy with interval, difference to the baseline and verdict for every table cell of the study.

    Every setting of the study's axes has columns of its own, with its own baseline. Holm's correction runs over every
    comparison of the report at once: benchmarks, settings, scale rules, contexts and variants.
    Rows that repeat another rule's comparison (neither the variant nor the baseline has a scale) count once. Raises
    ValueError where no finished cell has an answer.
    """
    rows: list[dict[str, Any]] = []
    for benchmark, setting in results.places:
        columns = {context: [context] for context in results.contexts(benchmark, setting)}
        columns[BEYOND] = joined_contexts(results, benchmark, setting)
        for scale_rule in results.scale_rules:
            questions = questions_under(results, benchmark, scale_rule, setting)
            for context, contexts in columns.items():
                asked = ask(results, questions, contexts)
                if asked.variants:
                    rows += judge_column(results, benchmark, scale_rule, context, asked)
    if not rows:
        raise ValueError(f"study {results.study!r} has no answer of a finished cell; run it again: {results.command}")
    return correct_over_grid(pd.DataFrame(rows))


def judge_column(
    results: StudyResults, benchmark: str, scale_rule: str, context: str, asked: Asked
) -> list[dict[str, Any]]:
    rows = []
    for variant, mean in zip(asked.variants, mean_estimates(asked.column), strict=True):
        difference, baseline = None, results.baseline_of(variant)
        if variant != baseline and baseline in asked.variants:
            difference = contrast(asked.column, asked.weights({variant: 1.0, baseline: -1.0}))
        rows.append(
            {
                "benchmark": benchmark,
                "setting": results.variant(variant)["setting"],
                "scale_rule": scale_rule,
                "context": context,
                "variant": variant,
                "accuracy": mean.value,
                "low": mean.low,
                "high": mean.high,
                "seeds": mean.num_seeds,
                "questions": len(asked.column.videos),
                "videos": asked.column.num_videos,
                "left_out": asked.left_out,
                "answers": len(asked.column.videos) * mean.num_seeds,
                "errors": asked.errors.get(variant, 0),
                "repeats": scale_rule != DEFAULT_RULE and {variant, baseline} <= asked.published,
                **difference_fields(difference),
            }
        )
    return rows


def difference_fields(difference: Estimate | None) -> dict[str, Any]:
    names = ("value", "low", "high", "standard_error", "degrees_of_freedom", "p_value", "num_seeds")
    values = asdict(difference) if difference else dict.fromkeys(names, nan)
    return {f"difference_{name}" if name != "p_value" else "p_value": values[name] for name in names}


def correct_over_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Add p_holm and verdict; repeated comparisons take both, and the interval, from the row that they repeat."""
    key = ["benchmark", "context", "variant"]
    copied = [name for name in rows.columns if name.startswith("difference_")] + ["p_value"]
    original = rows[rows.scale_rule == DEFAULT_RULE].set_index(key)
    for place in rows.index[rows.repeats & rows.p_value.notna()]:
        rows.loc[place, copied] = original.loc[tuple(rows.loc[place, key]), copied]
    counted = ~rows.repeats
    rows.loc[counted, "p_holm"] = holm(list(rows.p_value[counted]))
    adjusted = rows[rows.scale_rule == DEFAULT_RULE].set_index(key).p_holm
    for place in rows.index[rows.repeats]:
        rows.loc[place, "p_holm"] = adjusted.loc[tuple(rows.loc[place, key])]
    rows["verdict"] = [
        verdict(estimate_of(row), row.p_holm) if row.difference_value == row.difference_value else ""
        for row in rows.itertuples()
    ]
    return rows


def estimate_of(row: Any) -> Estimate:
    return Estimate(
        row.difference_value,
        row.difference_low,
        row.difference_high,
        row.difference_standard_error,
        row.difference_degrees_of_freedom,
        row.p_value,
        int(row.difference_num_seeds),
    )


def headline_rule(results: StudyResults) -> str:
    """The scale rule that the verdict sentence speaks of: each variant at its best validated scale, if there is one."""
    return "searched" if "searched" in results.scale_rules else results.scale_rules[0]
