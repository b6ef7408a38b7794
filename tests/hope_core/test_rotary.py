"""cos and sin tables, and the rotation, in every precision."""

import cmath

import pytest
import torch

from hope_core import apply_rotary, get_variant, rotary_tables

FRACTIONAL = torch.full((3, 1, 1), 300.37)


def test_angles_are_float32_for_fractional_positions_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cos, sin = rotary_tables(get_variant("m_rope"), FRACTIONAL, head_dim=128, rope_theta=1e6)
    expected = torch.tensor(300.37, dtype=torch.float32).double().cos()
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[0, 0, 0].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float32])
def test_positions_of_any_type_give_float32_tables(dtype: torch.dtype) -> None:
    place = torch.arange(12).view(3, 1, 4).to(dtype)
    cos, _ = rotary_tables(get_variant("videorope"), place, head_dim=32, rope_theta=1e4)
    expected, _ = rotary_tables(get_variant("videorope"), place.float(), head_dim=32, rope_theta=1e4)
    assert cos.dtype == torch.float32
    assert torch.equal(cos, expected)


def test_every_slot_turns_by_its_own_axis() -> None:
    variant = get_variant("m_rope")
    place = torch.rand(3, 2, 5) * 1000
    cos, sin = rotary_tables(variant, place, head_dim=32, rope_theta=1e4)
    for slot, axis in enumerate(variant.slot_axes(32).tolist()):
        angle = place[axis] * 1e4 ** torch.tensor(-2 * slot / 32)
        for i in (slot, slot + 16):
            torch.testing.assert_close(cos[..., i], angle.cos(), rtol=0, atol=2e-4)
            torch.testing.assert_close(sin[..., i], angle.sin(), rtol=0, atol=2e-4)


def test_the_fourth_index_of_vrope_is_derived_from_the_three() -> None:
    x, y, rows, columns = 3.0, 1.0, 4.0, 6.0
    four = [x + y, x - y + rows - 1, -x - y + rows + columns - 2, y - x + columns - 1]
    place = torch.tensor(four[:3]).view(3, 1, 1)
    cos, _ = rotary_tables(get_variant("vrope"), place, head_dim=32, rope_theta=1e4)
    frequency = get_variant("vrope").inverse_frequencies(32, 1e4)
    expected = torch.tensor([four[slot % 4] * frequency[slot] for slot in range(16)]).cos()
    torch.testing.assert_close(cos[0, 0, :16], expected)


def test_slot_i_turns_the_pair_i_and_i_plus_half_counter_clockwise() -> None:
    place = torch.tensor([2.0, 3.0, 5.0]).view(3, 1, 1)
    cos, sin = rotary_tables(get_variant("hope"), place, head_dim=16, rope_theta=1e4)
    q = torch.randn(1, 1, 1, 16)
    turned, _ = apply_rotary(q, q, cos, sin)
    for slot, axis in enumerate(get_variant("hope").slot_axes(16).tolist()):
        angle = 0.0 if axis < 0 else place[axis].item() * 1e4 ** (-2 * slot / 16)
        expected = complex(q[..., slot], q[..., slot + 8]) * cmath.exp(1j * angle)
        assert complex(turned[..., slot], turned[..., slot + 8]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 1, 2), (1, 2), (3, 2)])
def test_positions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(3, rows, tokens\\)"):
        rotary_tables(get_variant("m_rope"), torch.zeros(shape), head_dim=32, rope_theta=1e4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_queries_and_keys_keep_their_type_and_float32_tables_are_used_in_full(dtype: torch.dtype) -> None:
    cos, sin = rotary_tables(get_variant("hope"), torch.rand(3, 1, 6) * 5000, head_dim=32, rope_theta=1e4)
    q, k = torch.randn(1, 4, 6, 32).to(dtype), torch.randn(1, 2, 6, 32).to(dtype)
    rotated_q, rotated_k = apply_rotary(q, k, cos, sin)
    full_q, full_k = apply_rotary(q.double(), k.double(), cos.double(), sin.double())
    assert rotated_q.dtype == rotated_k.dtype == dtype
    assert torch.equal(rotated_q, full_q.to(dtype)) or dtype == torch.float32
    # one rounding at the end
    bound = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}[dtype]
    assert (rotated_k.double() - full_k).abs().max() <= bound * full_k.abs().max()


def test_apply_rotary_under_autocast_does_not_lower_the_precision() -> None:
    cos, sin = rotary_tables(get_variant("hope"), torch.rand(3, 1, 6) * 5000, head_dim=32, rope_theta=1e4)
    q, k = torch.randn(1, 4, 6, 32), torch.randn(1, 2, 6, 32)
    plain = apply_rotary(q, k, cos, sin)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = apply_rotary(q, k, cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_head_wise_queries_turn_as_the_key_of_their_group() -> None:
    variant = get_variant("mhrope")
    place = torch.rand(3, 2, 5) * 100
    cos, sin = rotary_tables(variant, place, head_dim=32, rope_theta=1e4, num_key_value_heads=4)
    assert cos.shape == (2, 4, 5, 32)
    x = torch.randn(2, 4, 5, 32)
    q, k = apply_rotary(x.repeat_interleave(2, 1), x, cos, sin)
    assert torch.equal(q[:, ::2], k)
    assert torch.equal(q[:, 1::2], k)


def test_heads_that_are_given_no_axis_do_not_turn() -> None:
    variant = get_variant("mhrope").replace(frequencies={"kind": "headwise", "heads": [1, 0, 2]})
    place = torch.rand(3, 1, 5) * 100
    cos, sin = rotary_tables(variant, place, head_dim=32, rope_theta=1e4, num_key_value_heads=4)
    assert (cos[:, 3] == 1).all()
    assert (sin[:, 3] == 0).all()
    assert (sin[:, :3] != 0).all()


def test_gradients_flow_through_the_rotation_and_are_its_transpose() -> None:
    cos, sin = rotary_tables(get_variant("hope"), torch.rand(3, 1, 3) * 50, head_dim=16, rope_theta=1e4)
    q = torch.randn(1, 2, 3, 16, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 1, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: apply_rotary(a, b, cos.double(), sin.double()), (q, k))
