"""The statistics against independent implementations and against simulated truth."""

from dataclasses import astuple, replace
from math import inf, isnan

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from reports.simulate import SCENARIOS, draw_column, run, weights
from reports.statistics import (
    Column,
    Components,
    Estimate,
    contrast,
    guarded,
    holm,
    interaction_components,
    mean_estimates,
    minimum_detectable_difference,
    pseudo_values,
    tie_floor,
    verdict,
    wilson,
)


def column(num_variants: int, num_seeds: int, num_videos: int, per_video: int, seed: int = 0) -> Column:
    rng = np.random.default_rng(seed)
    chance = 0.5 + 0.1 * rng.normal(size=(num_variants, num_seeds, 1, 1)) + 0.2 * rng.normal(size=(1, 1, num_videos, 1))
    chance = chance + 0.1 * rng.normal(size=(num_variants, 1, num_videos, 1))
    correct = (rng.random((num_variants, num_seeds, num_videos, per_video)) < chance).astype(float)
    videos = np.repeat(np.arange(num_videos), per_video).astype(object)
    return Column(correct.reshape(num_variants, num_seeds, -1), videos)


def video_means(made: Column) -> pd.DataFrame:
    rows = [
        (variant, seed, video, made.correct[variant, seed, made.videos == video].mean())
        for variant, seed in np.argwhere(made.trials)
        for video in sorted(set(made.videos))
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "video", "mean"])


def test_the_mean_squares_are_those_of_a_three_way_analysis_of_variance() -> None:
    made = column(4, 3, 5, 8)
    model = smf.ols("mean ~ (C(variant) + C(seed) + C(video)) ** 2", video_means(made)).fit()
    table = anova_lm(model)
    squares = table.sum_sq / table.df
    found = interaction_components(made)
    assert found.seed == pytest.approx(squares["C(variant):C(seed)"] / 5)
    assert found.seed_df == table.df["C(variant):C(seed)"]
    excess = max(0, squares["C(variant):C(video)"] - squares["Residual"])
    assert excess > 0
    assert found.video == pytest.approx(excess / (3 * 5))
    assert found.video_df == table.df["C(variant):C(video)"]


def test_missing_trials_leave_the_residual_of_the_additive_table() -> None:
    made = column(4, 4, 5, 8)
    made.correct[1, 3] = made.correct[2, 1] = made.correct[2, 3] = np.nan
    means = video_means(made).groupby(["variant", "seed"])["mean"].mean().reset_index()
    model = smf.ols("mean ~ C(variant) + C(seed)", means).fit()
    found = interaction_components(made)
    assert found.seed == pytest.approx(model.ssr / model.df_resid)
    assert found.seed_df == model.df_resid


def test_degrees_of_freedom_are_satterthwaite_s_over_the_parts_that_were_estimated() -> None:
    variance, degrees_of_freedom = Components(0.04, 0.01, seed_df=4, video_df=6).of_mean(2)
    assert variance == pytest.approx(0.03)
    assert degrees_of_freedom == pytest.approx(0.03**2 / (0.02**2 / 4 + 0.01**2 / 6))
    assert Components(0.04, 0.01, seed_df=0, video_df=6).of_mean(2)[1] == pytest.approx(54)
    assert Components(0.04, 0.01, seed_df=4, video_df=0).of_mean(2)[1] == pytest.approx(9)
    assert Components(0.0, 0.0, seed_df=4, video_df=6).of_mean(2) == (0.0, inf)


@pytest.mark.parametrize(("factor", "taken"), [(0.99, False), (1.01, True)])
def test_variants_that_vary_beyond_the_5_percent_point_keep_their_own_error(factor: float, taken: bool) -> None:
    pooled = Components(seed=0.01, video=0.002, seed_df=10, video_df=15)
    calm = Components(seed=0.001, video=0.0001, seed_df=2, video_df=3)
    seed = factor * pooled.seed * float(stats.f.isf(0.05, 2, 10))
    video = factor * pooled.video * float(stats.f.isf(0.05, 3, 15))
    found = guarded(pooled, replace(calm, seed=seed))
    assert found == (replace(pooled, seed=seed, seed_df=2) if taken else pooled)
    found = guarded(pooled, replace(calm, video=video))
    assert found == (replace(pooled, video=video, video_df=3) if taken else pooled)
    assert guarded(pooled, replace(calm, seed=1.0, seed_df=0)) == pooled


def test_a_variant_without_a_trial_changes_nothing_for_the_others() -> None:
    made = column(4, 3, 5, 8)
    made.correct[2] = np.nan
    others = Column(np.delete(made.correct, 2, axis=0), made.videos)
    assert contrast(made, [-1, 1, 0, 0]) == contrast(others, [-1, 1, 0])
    found = mean_estimates(made)
    assert (found[2].num_seeds, isnan(found[2].value), isnan(found[2].high)) == (0, True, True)
    for one, other in zip([found[0], found[1], found[3]], mean_estimates(others), strict=True):
        assert (one.value, one.low, one.high) == (other.value, other.low, other.high)


def test_a_video_s_pseudo_value_is_its_mean_and_their_mean_that_of_all_questions() -> None:
    made = column(2, 3, 4, 6)
    expected = made.correct.reshape(2, 3, 4, 6).mean(axis=3)
    values, means = pseudo_values(made)
    assert values == pytest.approx(expected)
    assert means == pytest.approx(made.correct.mean(axis=2))
    unequal = Column(made.correct, np.repeat(np.arange(3), [3, 5, 16]).astype(object))
    assert pseudo_values(unequal)[0].mean(axis=2) == pytest.approx(means)


@pytest.mark.parametrize("num_videos", [2, 6])
def test_one_seed_gives_the_paired_t_test_over_videos(num_videos: int) -> None:
    made = column(2, 1, num_videos, 10)
    means = video_means(made).pivot(index="video", columns="variant", values="mean")
    expected = stats.ttest_rel(means[1], means[0])
    found = contrast(made, [-1, 1])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(np.clip(expected.confidence_interval(), -1, 1)))
    assert found.num_seeds == 1


def test_without_excess_between_videos_two_variants_give_the_paired_t_test_over_seeds() -> None:
    made = next(made for seed in range(50) if not interaction_components(made := column(2, 4, 3, 20, seed)).video)
    means = made.correct.mean(axis=2)
    expected = stats.ttest_rel(means[1], means[0])
    found = contrast(made, [-1, 1])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.value == pytest.approx(means[1].mean() - means[0].mean())


def test_only_shared_seeds_enter_a_difference() -> None:
    made = column(3, 4, 5, 8)
    made.correct[0, 3] = made.correct[1, 0] = np.nan
    found = contrast(made, [-1, 1, 0])
    assert found.num_seeds == 2
    assert found.value == pytest.approx(float((made.correct[1, 1:3] - made.correct[0, 1:3]).mean()))


def test_variants_without_a_seed_in_common_are_not_compared() -> None:
    made = column(2, 4, 5, 8)
    made.correct[0, :2] = made.correct[1, 2:] = np.nan
    found = contrast(made, [-1, 1])
    assert found.num_seeds == 0
    assert isnan(found.value)


def test_one_seed_never_gets_a_verdict() -> None:
    sure = Estimate(0.4, 0.3, 0.5, 0.01, 10, 1e-9, num_seeds=1)
    assert verdict(sure, 1e-8) == "cannot tell"
    assert verdict(replace(sure, num_seeds=2), 1e-8) == "better"
    assert verdict(replace(sure, num_seeds=2, value=-0.4), 1e-8) == "worse"
    assert verdict(replace(sure, num_seeds=2), 0.2) == "cannot tell"
    assert verdict(replace(sure, num_seeds=2), 0.05) == "better"


def test_agreement_to_the_last_question_leaves_an_interval_open() -> None:
    same = Column(np.ones((3, 3, 40)), np.repeat(np.arange(4), 10).astype(object))
    found = contrast(same, [-1, 1, 0])
    assert (found.value, found.p_value) == (0.0, 1.0)
    reach = proportion_confint(0, 40, method="beta")[1]
    assert (found.low, found.high) == pytest.approx((-reach, reach))
    apart = Column(np.stack([np.zeros((3, 40)), np.ones((3, 40))]), same.videos)
    found = contrast(apart, [-1, 1])
    assert (found.low, found.high) == pytest.approx((1 - reach, 1))
    assert found.p_value == pytest.approx(stats.binomtest(40, 40).pvalue)
    apart.correct[1, :, 2:10] = apart.correct[1, :, 12:20] = apart.correct[1, :, 22:30] = apart.correct[1, :, 32:] = 0
    found = contrast(apart, [1, -1])
    assert (found.value, found.low, found.high) == pytest.approx((-0.2, -0.2 - reach, -0.2 + reach))
    assert found.p_value == pytest.approx(stats.binomtest(8, 8).pvalue)
    assert (found.standard_error, found.degrees_of_freedom, found.num_seeds) == (0.0, inf, 3)


def test_an_interval_stays_within_what_a_difference_can_be() -> None:
    made = Column(np.array([[[1.0, 1, 0, 0]], [[0.0, 0, 1, 1]]]), np.array(["a", "a", "b", "b"], dtype=object))
    found = contrast(made, [-1, 1])
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_nor_does_that_of_variants_which_never_agree(sign: int) -> None:
    correct = np.stack([np.zeros((2, 8)), np.ones((2, 8))])
    found = contrast(Column(correct, np.repeat(["a", "b"], 4).astype(object)), [-sign, sign])
    assert (found.value, sign * found.value) == (sign, 1)
    assert -1 <= found.low < found.high <= 1


def test_seeds_with_equal_counts_do_not_make_a_difference_certain() -> None:
    made = column(2, 2, 6, 4, seed=3)
    for seed, shift in ((0, 0), (1, 5)):
        made.correct[0, seed] = np.roll(np.repeat([1.0, 0.0], [12, 12]), shift)
        made.correct[1, seed] = np.roll(np.repeat([1.0, 0.0], [13, 11]), shift + 3)
    assert contrast(made, [-1, 1]).p_value > 0.01


def test_the_least_seed_variance_is_what_question_noise_makes_in_one_case_of_forty() -> None:
    assert stats.chi2.cdf(4 * tie_floor(0.2, 4) / 0.2, 4) == pytest.approx(0.025)
    made, rng = column(3, 3, 3, 4), np.random.default_rng(0)
    for variant, seed in np.ndindex(3, 3):  # every trial has half of the answers right, one has one more
        made.correct[variant, seed] = rng.permutation(12) < 6 + (variant == seed == 2)
    rows = [(*place, made.correct[place]) for place in np.ndindex(3, 3, 12)]
    answers = pd.DataFrame(rows, columns=["variant", "seed", "question", "correct"])
    noise = smf.ols("correct ~ (C(variant) + C(seed) + C(question)) ** 2", answers).fit().mse_resid
    assert interaction_components(made).seed == pytest.approx(tie_floor(noise / 12, 4))


def test_a_single_video_is_clustered_by_question() -> None:
    made = column(2, 3, 1, 30)
    assert np.isfinite(contrast(made, [-1, 1]).p_value)


def test_holm_is_the_step_down_adjustment_and_leaves_unknown_values_out() -> None:
    p_values = [0.01, 0.04, 0.003, 0.8, 0.02]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([0.01, float("nan"), 0.5])[0] == pytest.approx(0.02)
    assert isnan(holm([0.01, float("nan")])[1])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("correct", "size"), [(0, 20), (7, 20), (20, 20), (450, 900)])
def test_wilson_is_the_score_interval(correct: int, size: int) -> None:
    assert wilson(correct / size, size) == pytest.approx(proportion_confint(correct, size, method="wilson"), abs=1e-12)


def test_weights_that_do_not_sum_to_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to zero, not 1"):
        contrast(column(2, 2, 4, 5), [1, 0])


def test_more_of_anything_resolves_smaller_differences() -> None:
    base = minimum_detectable_difference(50, 4, 3, num_variants=6)
    assert minimum_detectable_difference(200, 4, 3, num_variants=6) < base
    assert minimum_detectable_difference(50, 20, 3, num_variants=6) < base
    assert minimum_detectable_difference(50, 4, 6, num_variants=6) < base
    assert minimum_detectable_difference(50, 4, 3, num_variants=6, num_comparisons=100) > base
    assert minimum_detectable_difference(50, 4, 1) == inf
    with pytest.raises(ValueError, match="0 questions"):
        minimum_detectable_difference(0, 4, 3)


def test_the_planned_difference_adds_the_quantiles_of_level_and_power() -> None:
    def planned(variance: float, degrees_of_freedom: float, level: float = 0.05, power: float = 0.8) -> float:
        t = stats.t(degrees_of_freedom)
        return (t.isf(level / 2) + t.ppf(power)) * variance**0.5

    seed = 0.03**2 + 0.3 / 100  # between seeds, and questions on which the two trials differ
    assert minimum_detectable_difference(100, 1, 4) == pytest.approx(planned(seed / 4, 3))
    variance, degrees_of_freedom = Components(seed, 0.05**2 / 5, 3 * 3, 3 * 4).of_mean(4)
    found = minimum_detectable_difference(100, 5, 4, num_variants=4, num_comparisons=6, power=0.9)
    assert found == pytest.approx(planned(variance, degrees_of_freedom, 0.05 / 6, 0.9))
    variance, degrees_of_freedom = Components(seed, 0.05**2 / 2, 3, 1).of_mean(4)
    assert minimum_detectable_difference(100, 2, 4) == pytest.approx(planned(variance, degrees_of_freedom))
    assert minimum_detectable_difference(2, 2, 2) < inf
    with pytest.raises(ValueError, match="1 variants: at least 1, 1, 1 and 2"):
        minimum_detectable_difference(100, 5, 4, num_variants=1)


def test_the_planned_difference_is_found_as_often_as_planned() -> None:
    scenario = replace(SCENARIOS[0], questions_per_video=(12,) * 8, seed_sd=0.03 / 2**0.5, video_sd=0.05 / 2**0.5)
    scenario = replace(scenario, shared_sds=(0.0, 0.0, 0.0))
    effect = minimum_detectable_difference(96, 8, 3, num_variants=6, disagreement=0.5)
    rng = np.random.default_rng(2)
    comparison = list(weights(scenario))
    found = [contrast(draw_column(scenario, effect, rng), comparison).p_value < 0.05 for _ in range(300)]
    assert 0.7 < np.mean(found) < 0.9


def naive_p_value(made: Column) -> float:
    """Every answer taken for an independent question: what the papers' tables invite a reader to do."""
    return float(stats.ttest_rel(made.correct[1].ravel(), made.correct[0].ravel()).pvalue)


@pytest.mark.parametrize("place", [0, 3, 10], ids=["quickstart", "videos differ", "unbalanced seeds"])
def test_error_rates_hold_in_simulation(place: int) -> None:
    """500 columns each: 5 % has a standard error of 1 point; docs/statistics.md has the full table."""
    found = run(SCENARIOS[place], 500)
    assert 2 <= found.false_positives <= 8
    assert found.difference_coverage >= 92
    assert found.mean_coverage >= 91.5


def test_the_simulation_can_tell_a_wrong_method() -> None:
    scenario = SCENARIOS[3]
    rng = np.random.default_rng(0)
    wrong = np.mean([naive_p_value(draw_column(scenario, 0.0, rng)) < 0.05 for _ in range(300)])
    assert wrong > 0.15


def test_an_accuracy_without_spread_has_the_interval_of_its_questions() -> None:
    same = Column(np.ones((2, 3, 40)), np.repeat(np.arange(4), 10).astype(object))
    found = mean_estimates(same)[0]
    assert (found.low, found.high) == pytest.approx(proportion_confint(40, 40, method="wilson"))


@pytest.mark.parametrize(("seeds", "variants"), [(1, 2), (2, 2), (3, 4)])
def test_a_column_of_one_question_can_tell_nothing(seeds: int, variants: int) -> None:
    correct = np.zeros((variants, seeds, 1))
    correct[0] = 1.0
    made = Column(correct, np.array(["film"], dtype=object))
    difference = contrast(made, [1.0, -1.0] + [0.0] * (variants - 2))
    assert (difference.value, difference.low, difference.high, difference.p_value) == (1.0, -1.0, 1.0, 1.0)
    assert verdict(difference, difference.p_value) == "cannot tell"
    assert minimum_detectable_difference(1, 1, seeds, num_variants=variants) == inf


def test_the_mean_of_one_question_that_seeds_answer_differently_has_a_wide_interval() -> None:
    (mean,) = mean_estimates(Column(np.array([[[1.0], [0.0]]]), np.array(["film"], dtype=object)))
    assert mean.value == 0.5
    assert mean.high - mean.low > 0.8


@pytest.mark.parametrize("copies", [1, 2])
def test_the_error_of_a_mean_is_that_of_seeds_and_videos_and_variants_share_their_videos(copies: int) -> None:
    one = column(1, 3, 5, 8, seed=1)
    table = anova_lm(smf.ols("mean ~ C(seed) + C(video)", video_means(one)).fit())
    squares = table.sum_sq / table.df
    seed, video = squares["C(seed)"] / 5, (squares["C(video)"] - squares["Residual"]) / (3 * 5)
    assert video > 0
    variance, degrees_of_freedom = Components(seed, video, copies * 2, 4).of_mean(3)
    found = mean_estimates(Column(np.repeat(one.correct, copies, axis=0), one.videos))[-1]
    assert found.value == pytest.approx(one.correct.mean())
    assert found.standard_error**2 == pytest.approx(variance)
    assert found.degrees_of_freedom == pytest.approx(degrees_of_freedom)
    size = found.value * (1 - found.value) / variance
    quantile = float(stats.t.isf(0.025, degrees_of_freedom))
    assert (found.low, found.high) == pytest.approx(wilson(found.value, size, quantile))


def test_the_error_of_one_seed_s_mean_is_that_of_its_videos() -> None:
    made = column(1, 1, 6, 40)
    (estimate,) = mean_estimates(made)
    assert estimate.standard_error == pytest.approx((video_means(made)["mean"].var() / 6) ** 0.5)


def test_a_variant_with_a_missing_trial_has_the_mean_of_its_others() -> None:
    made = column(2, 3, 4, 5)
    made.correct[1, 2] = np.nan
    estimate = mean_estimates(made)[1]
    assert (estimate.value, estimate.num_seeds) == (pytest.approx(made.correct[1, :2].mean()), 2)


def test_a_variant_that_is_always_wrong_or_right_says_nothing_of_the_error_of_the_others() -> None:
    made = column(1, 3, 6, 5)
    never, always = np.zeros_like(made.correct), np.ones_like(made.correct)
    beside = Column(np.concatenate([made.correct, never, always]), made.videos)
    # Of tuples, as there is no p-value of a mean: to numpy a nan equals a nan.
    np.testing.assert_equal(astuple(mean_estimates(beside)[0]), astuple(mean_estimates(made)[0]))


def test_a_mean_is_never_more_certain_than_its_answers_are_many() -> None:
    correct = np.tile([1.0, 0.0], 20)  # every video and seed the same: their spread is zero, or nearly
    correct = np.stack([[correct, correct], [np.roll(correct, 1), correct]])
    correct[0, 0, 0] = 0.0
    found = mean_estimates(Column(correct, np.repeat(np.arange(4), 10).astype(object)))[0]
    p = found.value
    assert found.standard_error**2 == pytest.approx(p * (1 - p) / 80)
