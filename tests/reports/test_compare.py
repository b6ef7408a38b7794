"""Two trials side by side, two reports one after the other, and the effect of one axis alone."""

import pandas as pd
import pytest

from reports.ablation import axis_effects, matched_pairs
from reports.compare import compare, compare_reports
from reports.results import StudyResults
from reports.verdicts import BEYOND, judge


def test_two_trials_are_compared_on_the_questions_that_both_answered(results: StudyResults) -> None:
    found = compare(results, "m_rope-s0", "hope-s0")
    cell = next(cell for cell in found.cells if (cell.context, cell.scale_rule) == ("64", "searched"))
    asked = results.questions.query("context == '64' and scale_rule == 'searched'").set_index(["trial", "id"]).correct
    a, b = asked["m_rope-s0"].astype(int), asked["hope-s0"].astype(int)
    assert (cell.accuracy_a, cell.accuracy_b) == (a.mean(), b.mean())
    assert (cell.only_a, cell.only_b) == (int((a > b).sum()), int((b > a).sum()))
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(b.mean() - a.mean())
    assert found.settings["variant"] == ("m_rope", "hope")
    assert "v_niah     64       searched" in found.text()


def test_a_cell_that_one_trial_lacks_is_shown_with_a_gap(results: StudyResults) -> None:
    found = compare(results, "hope-s0", "hope-s1")
    cell = next(cell for cell in found.cells if (cell.context, cell.scale_rule) == ("64", "equal"))
    assert cell.accuracy_a is not None
    assert (cell.accuracy_b, cell.difference) == (None, None)


def test_a_trial_may_be_named_by_the_beginning_of_its_run_id(results: StudyResults) -> None:
    trial = results.trials.iloc[0]
    assert compare(results, trial.run_id[:12], trial.trial).settings == {}


def test_an_unknown_trial_is_answered_with_the_known_ones(results: StudyResults) -> None:
    with pytest.raises(ValueError, match=r"0 trials of study 'simulated' are called 'hope'; its trials are hope-s0"):
        compare(results, "hope", "m_rope-s0")


def grid(**verdicts: tuple[str, float]) -> pd.DataFrame:
    rows = [("v_niah", "searched", "64", name, accuracy, said) for name, (said, accuracy) in verdicts.items()]
    return pd.DataFrame(rows, columns=["benchmark", "scale_rule", "context", "variant", "accuracy", "verdict"])


def test_regressions_come_before_gains_and_unchanged_cells_are_left_out() -> None:
    before = grid(
        a=("better", 0.8), b=("cannot tell", 0.5), c=("cannot tell", 0.5), d=("worse", 0.3), old=("worse", 0.1)
    )
    after = grid(
        a=("cannot tell", 0.7), b=("better", 0.7), c=("cannot tell", 0.502), d=("worse", 0.2), new=("worse", 0.1)
    )
    found = compare_reports(before, after)
    assert [change.variant for change in found.changes] == ["a", "d", "b"]
    assert [change.rank for change in found.changes] == [-1, 0, 1]
    assert (found.added, found.removed) == (["v_niah searched 64 new"], ["v_niah searched 64 old"])


def test_a_report_has_not_changed_since_itself(results: StudyResults) -> None:
    judged = judge(results)
    found = compare_reports(judged, judged)
    assert (found.changes, found.added, found.removed) == ([], [], [])


def test_an_axis_is_judged_by_pairs_that_differ_in_it_alone(results: StudyResults) -> None:
    entries = results.record["variants"]
    assert matched_pairs(entries, "frequencies") == {
        ("temporal_low", "temporal_zero"): [("videorope", "zero_fixed2"), ("low_dynamic", "hope")]
    }
    assert matched_pairs(entries, "positions") == {}
    means = judge(results).query("scale_rule == 'published'").set_index(["context", "variant"]).accuracy[BEYOND]
    expected = (means["zero_fixed2"] - means["videorope"] + means["hope"] - means["low_dynamic"]) / 2
    effect = next(found for found in axis_effects(results, "v_niah", "published") if found.axis == "frequencies")
    assert effect.difference.value == pytest.approx(expected)


def test_variants_without_a_scale_are_compared_once(results: StudyResults) -> None:
    judged = judge(results)
    vanilla = judged[judged.variant == "vanilla"]
    assert set(vanilla.groupby("context").p_holm.nunique()) == {1}
    assert set(vanilla.groupby("context").difference_low.nunique()) == {1}
    family = judged[~judged.repeats & judged.p_value.notna()]
    assert len(family) == 3 * (1 + 4 * 3)
    smallest = family.p_value.min()
    assert family.p_holm.min() == pytest.approx(min(1, smallest * len(family)))
