"""Which differences between variants are real.

Shapes: K variants, S seeds, V videos, Q questions. A *column* is one column of a results table: the same questions, put
to every trial of every variant.

A column is read as a three-way mixed layout, variants x seeds x videos: variants fixed, seeds and videos drawn from
larger populations. Questions weigh equally; videos enter as pseudo-values, so unequal numbers of questions keep the
plain mean. The error of a contrast between variants is

    variance = sum(weights^2) * (MS_vs / seeds + max(0, MS_vc - MS_vsc) / S) / V

from the mean squares of variant x seed, variant x video and their three-way interaction, pooled over the column's
variants, with Satterthwaite degrees of freedom. This is the analysis of multi-reader multi-case studies (Dorfman,
Berbaum, Metz 1992; Hillis 2007) with seeds as readers and videos as cases, except that the videos keep degrees of
freedom of their own, because they are few. docs/statistics.md shows by simulation how far its error rates hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.05
# Level of the F ratio beyond which contrasted variants keep their own error instead of the column's.
GUARD = 0.95


@dataclass(frozen=True)
class Column:
    """correct is float (K, S, Q): 0 or 1, NaN throughout for a trial that is missing; videos holds (Q,) labels."""

    correct: NDArray[np.float64]
    videos: NDArray[np.object_]

    @property
    def trials(self) -> NDArray[np.bool_]:
        """(K, S): which trials exist."""
        present: NDArray[np.bool_] = np.logical_not(np.isnan(self.correct).any(axis=2))
        return present

    @property
    def num_videos(self) -> int:
        return len(set(self.videos))

    @cached_property
    def error(self) -> "Components":
        """What makes differences between this column's variants uncertain, pooled over those that have a trial."""
        has_trial = np.flatnonzero(np.any(self.trials, axis=1))
        return interaction_components(Column(self.correct[has_trial], self.videos))


@dataclass(frozen=True)
class Components:
    """Error of one trial's mean, in accuracy squared: what varies with the seed, and what with the choice of videos."""

    seed: float
    video: float
    seed_df: float
    video_df: float

    def of_mean(self, num_seeds: float) -> tuple[float, float]:
        """Variance of a mean over num_seeds trials on the same questions, and its degrees of freedom."""
        seed = self.seed / num_seeds
        total = seed + self.video
        if total == 0:
            return 0.0, inf
        spread = (seed**2 / self.seed_df if self.seed_df else 0.0) + (
            self.video**2 / self.video_df if self.video_df else 0.0
        )
        return total, total**2 / spread


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference in accuracy (0..1), its 95 % interval, and the two-sided p value of "it is zero"."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    num_seeds: int


def pseudo_values(column: Column) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K, S, V) contributions of videos, whose mean is the plain mean over questions; and (K, S) those means.

    With a single video each question stands for itself.
    """
    labels = column.videos if column.num_videos > 1 else np.arange(len(column.videos))
    names, place = np.unique(labels.astype(str), return_inverse=True)
    member = (place == np.arange(len(names))[:, None]).astype(float)
    means = column.correct.mean(axis=2)
    deviation = (column.correct - means[:, :, None]) @ member.T
    return means[:, :, None] + deviation * len(names) / len(place), means


def interaction_components(column: Column) -> Components:
    """Components of the variant x seed and variant x video interactions: what makes differences uncertain."""
    present = column.trials
    num_variants, num_questions = len(present), len(column.videos)
    values, _ = pseudo_values(column)
    num_videos = values.shape[2]
    which_variant, which_seed = np.nonzero(present)
    additive = np.hstack([np.eye(num_variants)[which_variant], np.eye(present.shape[1])[which_seed]])
    residual_maker = np.eye(len(additive)) - additive @ np.linalg.pinv(additive)
    seed_df = len(additive) - int(np.linalg.matrix_rank(additive))
    seed_ms = residual_ms = 0.0
    if seed_df:
        rest = residual_maker @ values[present]
        by_trial = rest.mean(axis=1, keepdims=True)
        seed_ms = num_videos * float((by_trial**2).sum()) / seed_df
        residual_ms = float(((rest - by_trial) ** 2).sum()) / (seed_df * (num_videos - 1))
        noise = residual_maker @ column.correct[present]
        noise_ms = float(((noise - noise.mean(axis=1, keepdims=True)) ** 2).sum()) / (seed_df * (num_questions - 1))
        seed_ms = max(seed_ms, tie_floor(noise_ms * num_videos / num_questions, seed_df))
    harmonic_seeds = 1 / float((1 / present.sum(axis=1)).mean())
    per_video = np.nanmean(values, axis=1)
    centred = per_video - per_video.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=0)
    video_df = (num_variants - 1) * (num_videos - 1)
    video_ms = harmonic_seeds * float((centred**2).sum()) / video_df
    excess = max(0.0, video_ms - residual_ms) / harmonic_seeds
    return Components(seed_ms / num_videos, excess / num_videos, seed_df, video_df)


def tie_floor(noise: float, degrees_of_freedom: float) -> float:
    """The least believable seed mean square when answers alone are noisy.

    Counts tie: two seeds with the same number of right answers would make the seed variance zero. The floor is the
    2.5 % point of what question noise by itself leads to.
    """
    return float(noise * stats.chi2.ppf(0.025, degrees_of_freedom) / degrees_of_freedom)


def contrast(column: Column, weights: Sequence[float]) -> Estimate:
    """Weighted sum of the variants' means, over the seeds that every weighted variant has; weights (K,) sum to zero.

    num_seeds 1 in the answer means that the variance between seeds is not in the interval; 0, no seed in common: NaN.
    A single question says nothing of any other: its interval is everything.
    """
    used = np.asarray(weights)
    if abs(used.sum()) > 1e-9:
        raise ValueError(
            f"weights of a contrast must sum to zero, not {used.sum():g}: give the baseline a negative weight"
        )
    weighted = np.flatnonzero(used)
    common = np.flatnonzero(np.all(column.trials[weighted], axis=0))
    num_seeds = len(common)
    if num_seeds == 0:
        return Estimate(nan, nan, nan, nan, nan, nan, 0)
    value = float(used[weighted] @ column.correct[weighted][:, common].mean(axis=(1, 2)))
    if len(column.videos) == 1:
        return Estimate(value, -1.0, 1.0, nan, nan, 1.0, num_seeds)
    own = interaction_components(Column(column.correct[weighted], column.videos))
    variance, degrees_of_freedom = guarded(column.error, own).of_mean(num_seeds)
    variance *= float((used**2).sum())
    if variance < 1e-18:
        return without_variation(value, len(column.videos), num_seeds)
    error = sqrt(variance)
    reach = error * float(stats.t.ppf(1 - ALPHA / 2, degrees_of_freedom))
    p_value = float(2 * stats.t.sf(abs(value) / error, degrees_of_freedom))
    return Estimate(
        value, max(-1.0, value - reach), min(1.0, value + reach), error, degrees_of_freedom, p_value, num_seeds
    )


def guarded(pooled: Components, own: Components) -> Components:
    """Pooled components, except where the contrasted variants' own are larger beyond the 5 % point of an F ratio.

    Pooling assumes that variants vary alike; a variant that trains unstably must not borrow the calm of the others.
    """
    seed, seed_df = pooled.seed, pooled.seed_df
    if own.seed_df and own.seed > pooled.seed * stats.f.ppf(GUARD, own.seed_df, pooled.seed_df):
        seed, seed_df = own.seed, own.seed_df
    if own.video > pooled.video * stats.f.ppf(GUARD, own.video_df, pooled.video_df):
        return Components(seed, own.video, seed_df, own.video_df)
    return Components(seed, pooled.video, seed_df, pooled.video_df)


def without_variation(value: float, num_questions: int, num_seeds: int) -> Estimate:
    """Every seed and video agrees to the last question: exact binomial bounds over the distinct questions."""
    reach = 1 - (ALPHA / 2) ** (1 / num_questions)
    p_value = 1.0 if value == 0 else min(1.0, 2 * 0.5 ** (abs(value) * num_questions))
    return Estimate(value, max(-1.0, value - reach), min(1.0, value + reach), 0.0, inf, p_value, num_seeds)


def mean_estimates(column: Column) -> list[Estimate]:
    """One per variant: its accuracy with an interval over questions, videos and seeds.

    A Wilson interval at the effective number of questions, with a t quantile. The design effect behind that number is
    pooled over the column's variants, each scaled by its own p (1 - p). p_value is NaN.
    """
    present = column.trials
    values, means = pseudo_values(column)
    num_videos, num_questions = values.shape[2], len(column.videos)
    accuracy = [float(means[k, present[k]].mean()) if present[k].any() else nan for k in range(len(present))]
    scaled = [values[k, present[k]] / sqrt(p * (1 - p)) for k, p in enumerate(accuracy) if not isnan(p) and 0 < p < 1]
    pooled = pooled_mean_components(scaled, num_videos)
    estimates = []
    for k, p in enumerate(accuracy):
        num_seeds = int(present[k].sum())
        if num_seeds == 0:
            estimates.append(Estimate(nan, nan, nan, nan, nan, nan, 0))
            continue
        share, degrees_of_freedom = pooled.of_mean(num_seeds)
        size = min(1 / share, num_questions * num_seeds) if share else num_questions
        low, high = wilson(p, size, float(stats.t.ppf(1 - ALPHA / 2, degrees_of_freedom)))
        estimates.append(Estimate(p, low, high, sqrt(p * (1 - p) / size), degrees_of_freedom, nan, num_seeds))
    return estimates


def pooled_mean_components(scaled: list[NDArray[np.float64]], num_videos: int) -> Components:
    """Components of a single mean from tables (seeds, V), one per variant.

    Variants share their videos, so only one variant's worth of degrees of freedom is claimed for them.
    """
    if not scaled or num_videos == 1:
        return Components(0.0, 0.0, 0.0, 0.0)
    seed_ss = residual_ss = video_ms = 0.0
    seed_df = sum(len(table) - 1 for table in scaled)
    for table in scaled:
        by_seed, by_video = table.mean(axis=1, keepdims=True), table.mean(axis=0)
        seed_ss += num_videos * float(((by_seed - table.mean()) ** 2).sum())
        video_ms += len(table) * float(((by_video - table.mean()) ** 2).sum()) / (num_videos - 1) / len(scaled)
        residual_ss += float(((table - by_seed - by_video + table.mean()) ** 2).sum())
    seed_ms = seed_ss / seed_df if seed_df else 0.0
    residual_ms = residual_ss / (seed_df * (num_videos - 1)) if seed_df else 0.0
    seeds = 1 / float(np.mean([1 / len(table) for table in scaled]))
    excess = max(0.0, video_ms - residual_ms) / seeds
    return Components(seed_ms / num_videos, excess / num_videos, seed_df, num_videos - 1)


def wilson(p: float, size: float, quantile: float = float(stats.norm.ppf(1 - ALPHA / 2))) -> tuple[float, float]:
    """Wilson's score interval of a proportion p seen in size independent questions."""
    centre = (p + quantile**2 / (2 * size)) / (1 + quantile**2 / size)
    reach = quantile / (1 + quantile**2 / size) * sqrt(p * (1 - p) / size + quantile**2 / (4 * size**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over one family; NaN stays NaN and does not count."""
    p = np.asarray(p_values)
    adjusted = np.full(len(p), nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else []
    return [float(value) for value in adjusted]


def verdict(difference: Estimate, adjusted_p: float, alpha: float = ALPHA) -> str:
    """better, worse or cannot tell, for a difference to the baseline after correction over the grid."""
    if difference.num_seeds < 2 or isnan(adjusted_p) or adjusted_p > alpha:
        return "cannot tell"
    return "better" if difference.value > 0 else "worse"


def minimum_detectable_difference(
    num_questions: int,
    num_videos: int,
    num_seeds: int,
    *,
    num_variants: int = 2,
    num_comparisons: int = 1,
    disagreement: float = 0.3,
    seed_sd: float = 0.03,
    video_sd: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that a comparison would call better or worse with the given power, before any data.

    disagreement: share of questions on which a trial and its baseline trial differ. seed_sd, video_sd: standard
    deviations of the difference in accuracy between seeds, and between videos. num_variants: variants in the column,
    baseline included (they pool their error). num_comparisons: size of the family that Holm corrects. One seed, or one
    question, gives infinity.
    """
    if min(num_questions, num_videos, num_seeds) < 1 or num_variants < 2:
        raise ValueError(
            f"cannot plan with {num_questions} questions, {num_videos} videos, {num_seeds} seeds and {num_variants} "
            "variants: at least 1, 1, 1 and 2 are needed"
        )
    if num_seeds < 2 or num_questions < 2:
        return inf
    seed = seed_sd**2 + disagreement / num_questions
    video = video_sd**2 / num_videos if num_videos > 1 else 0.0
    plan = Components(seed, video, (num_variants - 1) * (num_seeds - 1), (num_variants - 1) * (num_videos - 1))
    variance, degrees_of_freedom = plan.of_mean(num_seeds)
    quantile = stats.t.ppf(1 - ALPHA / (2 * num_comparisons), degrees_of_freedom) + stats.t.ppf(
        power, degrees_of_freedom
    )
    return float(quantile * sqrt(variance))
