"""cos and sin per slot, laid out once per forward, and the rotation.

Shapes: B rows, S tokens, N heads, d head dimension; slot i of d/2 rotates the pair (i, i + d/2).
Angles are float32 whatever the model's type: bfloat16 would turn position 300.37 into 300.
"""

import torch
from torch import Tensor

from hope_core.variants import Variant


def rotary_tables(
    variant: Variant,
    position_ids: Tensor,
    *,
    head_dim: int,
    rope_theta: float,
    num_key_value_heads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin for every token and slot, each slot at its own axis.

    position_ids (3, B, S), rows t, h, w. Returns float32 (B, S, d), or (B, num_key_value_heads, S, d) for a head-wise
    allocation; slots that are not rotated hold exactly 1 and 0. Also under autocast.
    Raises ValueError for positions of another shape, or sizes the allocation cannot serve.
    """
    if position_ids.ndim != 3 or position_ids.shape[0] != 3:
        raise ValueError(f"position_ids has shape {tuple(position_ids.shape)}; expected (3, rows, tokens)")
    axes = variant.slot_axes(head_dim, num_key_value_heads)
    frequency = torch.where(axes < 0, 0.0, variant.inverse_frequencies(head_dim, rope_theta))
    device = position_ids.device
    rows = list(position_ids.to(torch.float32).unbind(0))
    rows.append(rows[0] - rows[1] + rows[2])  # FOURTH
    if axes.ndim == 2:
        place = torch.stack([rows[axis] for axis in axes[:, 0].clamp(min=0).tolist()], dim=1)  # a head has one axis
        angle = place[..., None] * frequency[:, None].to(device)
    else:
        # A product per axis, with zero at the other axes' slots: exact, and faster than gathering a position per slot.
        own = torch.stack([torch.where(axes == axis, frequency, 0.0) for axis in range(1 + int(axes.max()))]).to(device)
        angle = rows[0][..., None] * own[0]
        for row, turns in zip(rows[1:], own[1:], strict=False):
            angle.addcmul_(row[..., None], turns)
    cos = angle.cos()
    sin = angle.sin_()
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def apply_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys.

    q (B, N, S, d), k (B, num_key_value_heads, S, d); cos and sin (B, S, d), or (B, num_key_value_heads, S, d), where
    the queries of a group turn as their key. Products in the wider of the two types, results in those of q and k.
    """
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.shape[1] not in (1, x.shape[1]):
        repeats = x.shape[1] // cos.shape[1]
        cos, sin = cos.repeat_interleave(repeats, 1), sin.repeat_interleave(repeats, 1)
    # cos and sin hold their values twice, so each half of x needs the first half only.
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos.chunk(2, dim=-1)[0], sin.chunk(2, dim=-1)[0]
    first = (low * cos).addcmul_(high, sin, value=-1)
    second = (high * cos).addcmul_(low, sin)
    return torch.cat((first, second), dim=-1).to(x.dtype)
