"""Slot maps and frequencies."""

import math

import pytest
import torch

from hope_core import get_variant, make_variant
from hope_core.frequencies import FREQUENCIES

LETTERS = {0: "t", 1: "h", 2: "w", 3: "4", -1: "-"}


def slots(kind: str, head_dim: int = 128) -> str:
    return "".join(LETTERS[code] for code in FREQUENCIES[kind]().slot_axes(head_dim // 2, 8).tolist())


SLOTS = {
    "one_axis": "t" * 64,
    "contiguous": "t" * 16 + "h" * 24 + "w" * 24,
    "temporal_high": "t" * 16 + "hw" * 24,
    "temporal_low": "hw" * 24 + "t" * 16,
    "temporal_low_extended": "hw" * 24 + "t" * 16,
    "temporal_zero": "hw" * 24 + "-" * 16,
    "temporal_zero_half": "hw" * 16 + "-" * 32,
    "interleaved": "thw" * 20 + "t" * 4,
    "four_way": "thw4" * 16,
    "repeated": "tthwhwhw" * 8,
}


@pytest.mark.parametrize("kind", [kind for kind in FREQUENCIES if kind != "headwise"])  # which has a slot map a head
def test_the_slots_of_a_128_wide_head(kind: str) -> None:
    assert slots(kind) == SLOTS[kind]


@pytest.mark.parametrize(("head_dim", "sections"), [(64, (8, 12, 12)), (80, (10, 15, 15)), (32, (4, 6, 6))])
def test_sections_shrink_with_the_head(head_dim: int, sections: tuple[int, int, int]) -> None:
    t, h, w = sections
    assert slots("contiguous", head_dim) == "t" * t + "h" * h + "w" * w
    assert slots("temporal_low", head_dim) == "hw" * h + "t" * t
    assert slots("temporal_zero", head_dim) == "hw" * h + "-" * t


@pytest.mark.parametrize(("number", "shares"), [(8, (2, 3, 3)), (4, (2, 1, 1)), (3, (1, 1, 1)), (16, (4, 6, 6))])
def test_head_wise_gives_whole_heads_to_axes(number: int, shares: tuple[int, int, int]) -> None:
    axes = get_variant("mhrope").slot_axes(64, number)
    assert axes.shape == (number, 32)
    assert axes.dtype == torch.int8
    assert axes[:, 0].tolist() == [0] * shares[0] + [1] * shares[1] + [2] * shares[2]
    assert (axes == axes[:, :1]).all()


@pytest.mark.parametrize("number", [None, 1, 2])
def test_head_wise_refuses_heads_too_few(number: int | None) -> None:
    with pytest.raises(ValueError, match=r"headwise: .*key"):
        get_variant("mhrope").slot_axes(64, number)


def test_head_wise_refuses_shares_that_do_not_fit() -> None:
    variant = get_variant("mhrope").replace(frequencies={"kind": "headwise", "heads": [2, 3, 3]})
    with pytest.raises(ValueError, match="need 8 key/value heads, have 4"):
        variant.slot_axes(64, 4)


def test_heads_beyond_the_given_shares_do_not_turn() -> None:
    variant = get_variant("mhrope").replace(frequencies={"kind": "headwise", "heads": [1, 0, 2]})
    assert variant.slot_axes(64, 4)[:, 0].tolist() == [0, 2, 2, -1]
    assert variant.slot_axes(64, 3)[:, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize("head_dim", [127, 0, -2])
def test_an_odd_head_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim is {head_dim}; it must be an even number"):
        get_variant("hope").slot_axes(head_dim)


def test_shares_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"head_dim 24: .* need a multiple of 16"):
        get_variant("hope").slot_axes(24)


@pytest.mark.parametrize("name", ["vanilla", "m_rope", "hope", "mhrope"])
def test_frequencies_fall_geometrically_and_are_float32(name: str) -> None:
    frequencies = get_variant(name).inverse_frequencies(64, 1e4)
    assert frequencies.dtype == torch.float32
    expected = [1e4 ** (-2 * i / 64) for i in range(32)]
    torch.testing.assert_close(frequencies, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["one_axis", "temporal_low_extended"])
def test_theory_gets_frequencies_in_float64(kind: str) -> None:
    frequencies = FREQUENCIES[kind]().inverse_frequencies(64, 1e4, torch.float64)
    assert frequencies.dtype == torch.float64
    assert frequencies[1].item() == pytest.approx(1e4 ** (-2 / 64), rel=1e-14)


def test_videorope_pp_lengthens_the_base_of_temporal_slots_only() -> None:
    plain = get_variant("videorope").inverse_frequencies(128, 1e6)
    longer = get_variant("videorope_pp").inverse_frequencies(128, 1e6)
    base = 1e6 * ((4 * 32768 - 1) / (32768 - 1)) ** (128 / 126)
    assert torch.equal(longer[:48], plain[:48])
    for slot in range(48, 64):
        assert longer[slot].item() == pytest.approx(base ** (-2 * slot / 128), rel=1e-5)
    # slot d/2 - 1 is slowed by the ratio of the lengths, the meaning of the exponent d / (d - 2)
    assert plain[63].item() / longer[63].item() == pytest.approx(4, rel=1e-4)
    assert math.isclose(base ** (-126 / 128), longer[63].item(), rel_tol=1e-5)


def test_the_lowest_slot_is_slowed_by_the_ratio_of_the_last_positions() -> None:
    plain = FREQUENCIES["temporal_low"]().inverse_frequencies(128, 1e6, torch.float64)
    longer = FREQUENCIES["temporal_low_extended"](extension=4.0, trained_tokens=3)
    slowed = plain[63] / longer.inverse_frequencies(128, 1e6, torch.float64)[63]
    assert slowed.item() == pytest.approx((4 * 3 - 1) / (3 - 1), rel=1e-12)


def test_temporal_high_differs_from_contiguous_in_space_only() -> None:
    high = make_variant("high", positions="diagonal", frequencies="temporal_high").slot_axes(128)
    contiguous = get_variant("m_rope").slot_axes(128)
    assert ((high == 0) == (contiguous == 0)).all()
    assert (high != contiguous).any()
