"""Semantic preference: the closed form, the bounds, the definition by simulation, and `hope theory`."""

import math
from pathlib import Path

import pytest
import torch

from experiments.theory import run
from hope_core import get_variant, list_variants
from hope_core.theory import (
    Estimate,
    first_temporal_violation,
    first_violation,
    frame_step,
    length_bound,
    minimum_over_frames,
    monte_carlo,
    over_frames,
    preference,
    probability_negative,
    temporal_bounds,
    temporal_term,
)


@pytest.mark.parametrize(
    ("theta", "slot", "bound"),
    [
        (1e4, 63, 13_603.5),
        (1e6, 63, 1_265_814.9),
        (5e6, 63, 6_171_895.2),
        (1e4, 48, 1_571.8),
        (1e6, 48, 49_673.9),
        (5e6, 48, 166_092.5),
        (1e4, 15, 14.6),
        (1e6, 15, 41.0),
        (5e6, 15, 59.4),
    ],
)
def test_length_bounds_of_128_wide_heads(theta: float, slot: int, bound: float) -> None:
    assert round(length_bound(theta ** (-2 * slot / 128)), 1) == bound


@pytest.mark.parametrize("theta", [0.3, 0.017, 1.0])
def test_the_length_bound_is_where_the_first_negative_cosine_appears(theta: float) -> None:
    bound = length_bound(theta)
    assert probability_negative(theta, math.floor(bound)) == 0
    assert probability_negative(theta, math.floor(bound) + 1) > 0


def test_a_slot_that_does_not_turn_has_no_bound() -> None:
    assert length_bound(0.0) == math.inf
    assert temporal_bounds(get_variant("hope")) == (math.inf, math.inf)


def test_m_rope_s_time_turns_far_faster_than_videorope_s() -> None:
    assert [round(bound, 1) for bound in temporal_bounds(get_variant("m_rope"))] == [2.6, 41.0]
    assert [round(bound, 1) for bound in temporal_bounds(get_variant("videorope"))] == [49_673.9, 1_265_814.9]


def test_the_chance_of_a_negative_cosine_grows_to_a_half() -> None:
    theta = 1e6 ** (-30 / 128)
    chances = [probability_negative(theta, length) for length in (40, 60, 80, 10_000)]
    assert chances[0] == 0
    assert 0 < chances[1] < chances[2]
    assert chances[3] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("frames", "videorope", "hope", "hope_x"),
    [
        (3_000, 15.71, 15.72, 21.55),
        (6_000, 9.24, 9.29, 20.51),
        (50_000, -3.42, -1.15, 18.34),
        pytest.param(1_500_000, -24.44, -5.23, 14.43, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_preference_with_space_growing_as_the_diagonal_layout_makes_it(
    frames: int, videorope: float, hope: float, hope_x: float
) -> None:
    minima = {name: minimum_over_frames(get_variant(name), frames) for name in ("videorope", "hope", "hope_x")}
    assert {name: round(value, 2) for name, value in minima.items()} == {
        "videorope": videorope,
        "hope": hope,
        "hope_x": hope_x,
    }


def test_preference_is_the_plain_sum_over_slots() -> None:
    for name in ("m_rope", "hope", "vrope", "videorope_pp"):
        variant, (dt, dx, dy) = get_variant(name), (7.0, 3.0, -2.0)
        frequencies = variant.frequencies.inverse_frequencies(64, 1e4, torch.float64).tolist()
        distance = {0: dt, 1: dy, 2: dx, 3: dt - dy + dx, -1: 0.0}
        axes = variant.slot_axes(64).tolist()
        expected = sum(math.cos(distance[axis] * theta) for axis, theta in zip(axes, frequencies, strict=True))
        assert preference(variant, dt, dx, dy, head_dim=64, rope_theta=1e4).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", list_variants())
def test_preference_is_every_slot_at_distance_zero_and_never_more(name: str) -> None:
    dt = torch.arange(2000)
    values = preference(get_variant(name), dt, dt / 3, dt / 7)
    assert values[0] == pytest.approx(64)
    assert (values <= 64 + 1e-9).all()


def test_zero_frequency_dominates_every_other_time_with_the_same_space() -> None:
    dt = torch.arange(5000)
    zero, low = (temporal_term(get_variant(name), dt) for name in ("hope", "videorope"))
    assert (zero == 16).all()
    assert (low <= zero + 1e-9).all()
    difference = preference(get_variant("hope"), dt, 3.0, 4.0) - preference(get_variant("videorope"), dt, 3.0, 4.0)
    torch.testing.assert_close(difference, zero - low)


def test_hope_x_never_prefers_an_unrelated_key() -> None:
    space = torch.arange(0, 100_000, 7)
    assert preference(get_variant("hope_x"), 1e9, space, space).min() >= 0


def test_the_two_accountings_differ_where_the_layout_moves_space_with_time() -> None:
    assert frame_step(get_variant("m_rope"), scale=2.0) == (2, 0, 0)
    assert frame_step(get_variant("hope"), scale=0.75) == (0.75, 0.75, 0.75)
    assert frame_step(get_variant("vanilla"), rows=9, columns=16) == (144, 144, 144)
    assert frame_step(get_variant("vrope"), rows=9, columns=16) == (24, 24, 24)
    frames = torch.arange(100)
    hope = get_variant("hope")
    assert torch.equal(over_frames(hope, frames, scale=0.5), preference(hope, frames / 2, frames / 2, frames / 2))
    m_rope = get_variant("m_rope")
    assert torch.equal(over_frames(m_rope, frames), preference(m_rope, frames))


def test_first_violations_are_the_first() -> None:
    found = first_violation(get_variant("vanilla"), 1000)
    assert found is not None
    values = over_frames(get_variant("vanilla"), torch.arange(found + 1))
    assert values[found] < 0 <= values[:found].min()
    assert first_violation(get_variant("hope"), 30_000) is None
    # slot 15 is the last to be negative; 16 fast slots together go below zero much earlier
    assert first_temporal_violation(get_variant("m_rope"), 100) == 16
    assert first_temporal_violation(get_variant("hope"), 100_000) is None


@pytest.mark.parametrize("name", [name for name in list_variants() if not name.startswith("mhrope")])
def test_the_definition_by_simulation_agrees_with_the_closed_form(name: str) -> None:
    estimate = monte_carlo(get_variant(name), 40.0, 3.0, 2.0, head_dim=64, rope_theta=1e4, num_draws=4000, seed=5)
    assert isinstance(estimate, Estimate)
    assert estimate.low < estimate.mean < estimate.high
    # three standard errors: 1 in 400 for a fixed seed
    assert abs(estimate.mean - estimate.expected) < 1.5 * (estimate.high - estimate.mean)


def test_the_interval_of_the_simulation_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        estimate = monte_carlo(get_variant("videorope"), 9.0, 2.0, 1.0, head_dim=32, num_draws=300, seed=seed)
        hits += estimate.low <= estimate.expected <= estimate.high
    assert 180 <= hits <= 199  # 95 % of 200, 3.3 standard deviations


def test_a_noise_free_key_is_preferred_as_much_as_a_noisy_one_on_average() -> None:
    clean = monte_carlo(get_variant("hope"), 5.0, noise=0.0, num_draws=4000)
    noisy = monte_carlo(get_variant("hope"), 5.0, noise=2.0, num_draws=4000)
    assert clean.expected == noisy.expected
    assert noisy.high - noisy.low > clean.high - clean.low


def test_hope_theory_prints_a_table_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["m_rope", "hope", "mhrope"], tmp_path)
    printed = capsys.readouterr().out
    assert "| m_rope | 2.6 | 41.0 | 0.500 | 16 | 40.57 |" in printed
    assert "| hope | none | none | 0.000 | not to 200,000 | 15.72 | -1.15 | 33,649 |" in printed
    assert (tmp_path / "theory.md").read_text().strip() in printed
    for name in ("preference", "violation", "slots"):
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "m_rope" in (tmp_path / "theory.md").read_text()


def test_hope_theory_refuses_an_unknown_variant_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown variant 'rope9'"):
        run(["hope", "rope9"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
