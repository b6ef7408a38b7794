"""Which answers a verdict is made of: whole trials, questions that all answered, every comparison counted once."""

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.results import StudyResults
from reports.statistics import Column, contrast, holm, mean_estimates
from reports.verdicts import BEYOND, ask, headline_rule, joined_contexts, judge, questions_under

VARIANTS = {"m_rope": False, "vanilla": False, "hope": True}  # name: whether it has a scale
CONTEXTS = {"16": 16.0, "32": 32.0, "64": 64.0}
SEEDS, IDS = (0, 1, 2), range(12)


def answers(scale_rules: tuple[str, ...]) -> pd.DataFrame:
    """Every trial's answers to the same questions of three videos; no two columns, variants or rules are alike."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "benchmark": "v_niah",
            "setting": "",
            "scale_rule": rule,
            "context": context,
            "variant": variant,
            "seed": seed,
            "id": f"q{i}",
            "video": f"clip{i % 3}",
            "correct": bool(rng.random() < 0.3 + 0.4 * (variant == "hope")),
            "error": None,
        }
        for rule in scale_rules
        for context in CONTEXTS
        for variant in VARIANTS
        for seed in SEEDS
        for i in IDS
    ]
    return pd.DataFrame(rows)


def study(
    scale_rules: tuple[str, ...] = ("published", "searched"),
    *,
    baseline: str = "m_rope",
    train_length: float | None = 16,
    questions: pd.DataFrame | None = None,
) -> StudyResults:
    entry: dict[str, Any] = {"baseline": baseline, "setting": ""}
    made: dict[str, Any] = dict.fromkeys(StudyResults.__dataclass_fields__)
    made["record"] = {
        "variants": [{"name": name, "scalable": scalable, **entry} for name, scalable in VARIANTS.items()],
        "benchmarks": {"v_niah": {"train_length": train_length}},
        "scale_rules": list(scale_rules),
    }
    made["questions"] = answers(scale_rules) if questions is None else questions
    rules = made["questions"].scale_rule.unique()
    cells = [("v_niah", "", rule, context, size) for rule in rules for context, size in CONTEXTS.items()]
    made["cells"] = pd.DataFrame(cells, columns=["benchmark", "setting", "scale_rule", "context", "context_size"])
    return StudyResults(**made)


def without(questions: pd.DataFrame, condition: str) -> pd.DataFrame:
    return questions.drop(questions.query(condition).index)


def table(questions: pd.DataFrame, contexts: list[str]) -> Column:
    """The column of the variants in their order, by plain loops."""
    found = {(q.variant, q.seed, q.context, q.id): float(q.correct) for q in questions.itertuples()}
    places = [(context, f"q{i}") for context in contexts for i in IDS]
    correct = [[[found[name, seed, *place] for place in places] for seed in SEEDS] for name in VARIANTS]
    return Column(np.array(correct), np.array([f"clip{int(q[1:]) % 3}" for _, q in places], dtype=object))


def by_question(column: Column) -> list[tuple[str, list[float]]]:
    """Each question's video and its answers, trial after trial."""
    return sorted(zip(column.videos, column.correct.reshape(-1, len(column.videos)).T.tolist(), strict=True))


def test_contexts_beyond_the_training_length_are_joined_and_all_where_there_is_none() -> None:
    assert joined_contexts(study(), "v_niah") == ["32", "64"]
    assert joined_contexts(study(train_length=None), "v_niah") == ["16", "32", "64"]
    assert joined_contexts(study(train_length=64), "v_niah") == ["16", "32", "64"]


def test_a_variant_without_a_scale_brings_its_published_answers_to_every_rule() -> None:
    results = study()
    asked = questions_under(results, "v_niah", "searched")
    assert set(zip(asked.variant, asked.scale_rule, strict=True)) == {
        ("m_rope", "published"),
        ("vanilla", "published"),
        ("hope", "searched"),
    }
    assert set(questions_under(results, "v_niah", "published").scale_rule) == {"published"}
    assert set(questions_under(study(("equal", "searched")), "v_niah", "searched").scale_rule) == {"searched"}


def test_only_the_answers_of_the_benchmark_and_the_setting_are_taken() -> None:
    others = [answers(("published",)) for _ in range(2)]
    others[0]["benchmark"] = "mlvu"
    others[1]["setting"], others[1]["variant"] = "recipe.lr=1", others[1].variant + " · recipe.lr=1"
    results = study(("published",), questions=pd.concat([answers(("published",)), *others], ignore_index=True))
    own = len(answers(("published",)))
    assert len(questions_under(results, "v_niah", "published", "")) == own
    assert len(questions_under(results, "v_niah", "published")) == 2 * own


def test_answers_stand_under_their_variant_seed_and_video() -> None:
    results = study(("published",))
    asked = ask(results, results.questions.sample(frac=1, random_state=1), ["32", "64"])
    expected = table(results.questions, ["32", "64"])
    assert (asked.variants, asked.seeds, asked.left_out) == (list(VARIANTS), list(SEEDS), 0)
    assert by_question(asked.column) == by_question(expected)
    assert asked.weights({"hope": 1.0, "m_rope": -1.0}) == [-1.0, 0.0, 1.0]


def test_a_trial_counts_in_a_joined_column_only_when_it_finished_every_context() -> None:
    results = study(("published",))
    questions = without(results.questions, "variant == 'hope' and seed == 1 and context == '64'")
    joined = ask(results, questions, ["32", "64"])
    assert joined.column.trials.tolist() == [[True] * 3, [True] * 3, [True, False, True]]
    assert len(joined.column.videos) == 24
    assert ask(results, questions, ["32"]).column.trials.all()


def test_a_question_that_one_trial_did_not_answer_is_left_out_for_all_and_counted() -> None:
    results = study(("published",))
    questions = without(results.questions, "variant == 'hope' and seed == 1 and context == '64' and id == 'q4'")
    asked = ask(results, questions, ["32", "64"])
    assert asked.left_out == 1
    assert asked.column.correct.shape == (3, 3, 23)
    assert asked.column.trials.all()
    assert list(asked.column.videos).count("clip1") == 7


def test_answers_that_ended_in_an_error_are_counted_by_variant() -> None:
    questions = answers(("published",))
    failed = questions.query("variant == 'hope' and context == '64' and id in ('q1', 'q2')").index
    questions.loc[failed, "error"] = "out of memory"
    judged = judge(study(("published",), questions=questions)).set_index(["variant", "context"])
    assert judged.errors["hope"].to_dict() == {"16": 0, "32": 0, "64": 6, BEYOND: 6}
    assert not judged.errors["m_rope"].any()


def test_errors_of_answers_that_a_column_leaves_out_are_not_counted_in_it() -> None:
    questions = answers(("published",))
    asked = questions[(questions.variant == "hope") & questions.id.isin(["q1", "q2"])]
    questions.loc[asked.index, "error"] = "out of memory"
    # Seed 1 is no whole trial beyond the training length, and q2 was not put to all of the others.
    questions = without(questions, "variant == 'hope' and seed == 1 and context == '64'")
    questions = without(questions, "variant == 'vanilla' and seed == 0 and id == 'q2'")
    judged = judge(study(("published",), questions=questions)).set_index(["variant", "context"])
    assert judged.errors["hope"].to_dict() == {"16": 3, "32": 3, "64": 2, BEYOND: 4}
    assert judged.answers["hope"][BEYOND] == 2 * 22


def test_a_row_says_accuracy_difference_and_what_they_are_made_of() -> None:
    results = study(("published",))
    judged = judge(results).set_index(["context", "variant"])
    column = table(results.questions, ["32", "64"])
    mean, difference = mean_estimates(column)[2], contrast(column, [-1, 0, 1])
    row = judged.loc[BEYOND, "hope"]
    assert [row.accuracy, row.low, row.high] == pytest.approx([mean.value, mean.low, mean.high])
    found = [row.difference_value, row.difference_low, row.difference_high, row.p_value]
    assert found == pytest.approx([difference.value, difference.low, difference.high, difference.p_value])
    assert row.difference_num_seeds == 3
    assert (row.seeds, row.questions, row.videos, row.answers, row.left_out) == (3, 24, 3, 72, 0)
    assert (row.scale_rule, row.benchmark, row.setting) == ("published", "v_niah", "")
    baseline = judged.loc[BEYOND, "m_rope"]
    assert baseline.verdict == ""
    assert isnan(baseline.p_value)
    assert list(dict.fromkeys(judged.index.get_level_values("context"))) == ["16", "32", "64", BEYOND]


def test_the_correction_counts_a_repeated_comparison_once_and_gives_it_the_same_answer() -> None:
    judged = judge(study())
    assert set(judged[judged.repeats].groupby("variant").size().items()) == {("m_rope", 4), ("vanilla", 4)}
    asked = judged[~judged.repeats]
    expected = holm(list(asked.p_value))
    assert asked.p_holm.tolist() == pytest.approx(expected, nan_ok=True)
    assert asked.p_value.notna().sum() == 4 + 4 * 2
    rows = judged.set_index(["variant", "scale_rule", "context"])
    for context in (*CONTEXTS, BEYOND):
        repeated, original = rows.loc["vanilla", "searched", context], rows.loc["vanilla", "published", context]
        assert (repeated.p_holm, repeated.difference_low) == (original.p_holm, original.difference_low)
        assert repeated.verdict == original.verdict != ""


@pytest.mark.parametrize(
    ("baseline", "rules"), [("hope", ("published", "searched")), ("m_rope", ("equal", "searched"))]
)
def test_nothing_repeats_where_the_baseline_has_a_scale_or_nothing_was_run_as_published(
    baseline: str, rules: tuple[str, ...]
) -> None:
    judged = judge(study(rules, baseline=baseline))
    assert not judged.repeats.any()
    assert judged.p_value.notna().sum() == 2 * 4 * 2


def test_variants_without_a_scale_bring_their_own_answers_where_the_study_leaves_the_published_ones_out() -> None:
    everything = answers(("published", "equal", "searched"))
    questions = without(everything, "scale_rule == 'published'")
    results = study(("published", "equal", "searched"), questions=questions)
    assert results.scale_rules == ["equal", "searched"]
    judged = judge(results)
    assert set(judged.groupby("scale_rule").variant.unique().map(tuple)) == {tuple(VARIANTS)}
    assert not judged.repeats.any()
    assert judged.p_value.notna().sum() == 2 * 4 * 2
    asked = questions_under(results, "v_niah", "searched")
    pd.testing.assert_frame_equal(asked.sort_index(), questions[questions.scale_rule == "searched"])


def test_a_comparison_repeats_only_where_all_its_answers_are_the_published_ones() -> None:
    everything = answers(("published", "searched"))
    questions = without(everything, "variant == 'vanilla' and scale_rule == 'published' and context == '64'")
    judged = judge(study(questions=questions)).set_index(["scale_rule", "context", "variant"])
    assert judged[judged.repeats].loc["searched"].index.to_list() == [
        *[("16", "m_rope"), ("16", "vanilla"), ("32", "m_rope"), ("32", "vanilla")],
        *[("64", "m_rope"), (BEYOND, "m_rope")],
    ]
    assert ("published", "64", "vanilla") not in judged.index
    counted = judged[~judged.repeats & judged.p_value.notna()].groupby("variant").size()
    assert counted.to_dict() == {"hope": 2 * 4, "vanilla": 4}


def test_a_study_of_variants_without_a_scale_alone_is_judged_without_its_published_cells() -> None:
    questions = without(answers(("published", "searched")), "variant == 'hope' or scale_rule == 'published'")
    judged = judge(study(questions=questions))
    assert set(judged[judged.variant == "vanilla"].verdict) <= {"better", "worse", "cannot tell"}
    assert len(judged) == 4 * 2


def test_a_rule_without_an_answer_of_its_own_has_no_column() -> None:
    other = answers(("published",)).assign(benchmark="mlvu")
    questions = pd.concat([answers(("published", "searched")), other], ignore_index=True)
    assert questions_under(study(questions=questions), "mlvu", "searched").empty


def test_a_study_without_a_single_answer_is_refused_in_one_line() -> None:
    results = study()
    with pytest.raises(ValueError, match="has no answer of a finished cell") as raised:
        judge(replace(results, study="mine", questions=results.questions.iloc[:0]))
    assert "\n" not in str(raised.value)


def test_the_verdict_of_a_row_is_that_of_its_corrected_p_value() -> None:
    questions = answers(("published",))
    for name, right in (("hope", True), ("vanilla", False)):
        questions.loc[questions.query(f"variant == '{name}' and context != '16'").index, "correct"] = right
    judged = judge(study(("published",), questions=questions)).set_index(["context", "variant"])
    assert judged.loc[BEYOND].verdict.to_dict() == {"m_rope": "", "vanilla": "worse", "hope": "better"}


def test_a_column_without_a_finished_trial_has_no_row_and_a_baseline_without_one_no_difference() -> None:
    questions = without(answers(("published",)), "context == '64' or (variant == 'm_rope' and context == '32')")
    judged = judge(study(("published",), questions=questions))
    assert set(judged.context) == {"16", "32"}
    found = judged[judged.context == "32"]
    assert list(found.variant) == ["vanilla", "hope"]
    assert found.difference_value.isna().all()
    assert set(found.verdict) == {""}


def test_the_report_speaks_of_the_searched_scale_where_there_is_one() -> None:
    assert headline_rule(study()) == "searched"
    assert headline_rule(study(("equal", "published"))) == "equal"
