"""How often the report's statistics are right, on simulated studies whose truth is known.

    python -m reports.simulate --repetitions 4000

prints the table of docs/statistics.md. Each repetition draws a column of right and wrong answers: every question has a
probability that shifts with the variant and seed, the variant and video, and, for all variants alike, with the seed,
video and question. All shifts are normal; probabilities are clipped to 0..1.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports.statistics import ALPHA, Column, contrast, mean_estimates


@dataclass(frozen=True)
class Scenario:
    """A column's shape and its spreads (standard deviations of the probability of a right answer)."""

    title: str
    num_variants: int = 6
    num_seeds: int = 3
    questions_per_video: tuple[int, ...] = (12,) * 4
    accuracy: float = 0.5
    # Of the variant: between its seeds, between videos. seed_sd_of_first replaces the former for the compared variant.
    seed_sd: float = 0.04
    video_sd: float = 0.05
    seed_sd_of_first: float | None = None
    # Of everything at once: between seeds, videos, questions.
    shared_sds: tuple[float, float, float] = (0.03, 0.08, 0.15)
    # Seeds of each variant (baseline first); None: all have num_seeds.
    seeds_of: tuple[int, ...] | None = None


SCENARIOS = (
    Scenario("6 variants, 3 seeds, 4 videos of 12 questions"),
    Scenario("no variant differs by seed or video", seed_sd=0.0, video_sd=0.0),
    Scenario("large differences between seeds", seed_sd=0.10),
    Scenario("large differences between videos", video_sd=0.15),
    Scenario("2 seeds", num_seeds=2),
    Scenario("5 seeds", num_seeds=5),
    Scenario("12 videos of 4 questions", questions_per_video=(4,) * 12),
    Scenario("50 videos of 1 question", questions_per_video=(1,) * 50),
    Scenario("2 videos of 24 questions", questions_per_video=(24,) * 2),
    Scenario("videos of 2 to 30 questions", questions_per_video=(2, 4, 6, 10, 18, 30)),
    Scenario(
        "unbalanced seeds: 5 for the baseline, 3 for the others, 2 for one", num_seeds=5, seeds_of=(5, 3, 3, 3, 3, 2)
    ),
    Scenario("the compared variant has 3 seeds, the baseline 2", seeds_of=(2, 3, 3, 3, 3, 3)),
    Scenario("only 2 variants", num_variants=2),
    Scenario("only 2 variants, 5 seeds, 12 videos", num_variants=2, num_seeds=5, questions_per_video=(4,) * 12),
    Scenario("near the ceiling: 93 % right", accuracy=0.93, seed_sd=0.01, video_sd=0.01, shared_sds=(0.01, 0.02, 0.04)),
    Scenario("the compared variant's seeds differ 3 times as much", seed_sd_of_first=0.12),
)


@dataclass(frozen=True)
class Outcome:
    """Shares in per cent; half_width is the median half-width of a difference's interval, in points."""

    false_positives: float
    difference_coverage: float
    mean_coverage: float
    half_width: float


def draw_column(scenario: Scenario, effect: float, rng: np.random.Generator) -> Column:
    """Baseline first, the compared variant second; effect is what the second is better by."""
    videos = np.repeat(np.arange(len(scenario.questions_per_video)), scenario.questions_per_video)
    variants, seeds, num_videos = scenario.num_variants, scenario.num_seeds, len(scenario.questions_per_video)
    seed_sds = np.full(variants, scenario.seed_sd)
    if scenario.seed_sd_of_first is not None:
        seed_sds[1] = scenario.seed_sd_of_first
    of_seed, of_video, of_question = scenario.shared_sds
    chance = np.full((variants, seeds, len(videos)), scenario.accuracy)
    chance[0] -= effect / 2
    chance[1] += effect / 2
    chance += seed_sds[:, None, None] * rng.normal(size=(variants, seeds, 1))
    chance += scenario.video_sd * rng.normal(size=(variants, 1, num_videos))[:, :, videos]
    chance += of_seed * rng.normal(size=(1, seeds, 1)) + of_video * rng.normal(size=(1, 1, num_videos))[:, :, videos]
    chance += of_question * rng.normal(size=len(videos))
    correct = (rng.random(chance.shape) < np.clip(chance, 0, 1)).astype(float)
    for variant, count in enumerate(scenario.seeds_of or ()):
        correct[variant, count:] = np.nan
    return Column(correct, videos.astype(object))


def weights(scenario: Scenario) -> NDArray[np.float64]:
    found = np.zeros(scenario.num_variants)
    found[:2] = -1, 1
    return found


def run(scenario: Scenario, repetitions: int, seed: int = 0) -> Outcome:
    """False positives without an effect, coverage and width with one of 10 points, coverage of an accuracy."""
    rng = np.random.default_rng(seed)
    comparison = list(weights(scenario))
    effect = 0.0 if scenario.accuracy > 0.8 else 0.1
    false_positives = covered = mean_covered = 0
    widths = []
    for _ in range(repetitions):
        null = draw_column(scenario, 0.0, rng)
        false_positives += contrast(null, comparison).p_value < ALPHA
        mean = mean_estimates(null)[0]
        mean_covered += mean.low <= scenario.accuracy <= mean.high
        found = contrast(draw_column(scenario, effect, rng), comparison)
        covered += found.low <= effect <= found.high
        widths.append((found.high - found.low) / 2)
    share = 100 / repetitions
    return Outcome(share * false_positives, share * covered, share * mean_covered, 100 * float(np.median(widths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000, help="simulated columns per scenario")
    repetitions = parser.parse_args().repetitions
    print("| simulated column | false positives | difference covered | accuracy covered | half-width |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for scenario in SCENARIOS:
        found = run(scenario, repetitions)
        print(
            f"| {scenario.title} | {found.false_positives:.1f} % | {found.difference_coverage:.1f} % "
            f"| {found.mean_coverage:.1f} % | ± {found.half_width:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
