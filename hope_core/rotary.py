"""cos and sin per slot, laid out once per forward, and the rotation.

Shapes: B rows, S tokens, N heads, d head dimension; slot i of d/2 rotates the pair (i, i + d/2).
Angles are float32 whatever the model's type: bfloat16 would turn position 300.37 into 300.
"""

import torch
from torch import Tensor

from hope_core.frequencies import FOURTH
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
    device = position_ids.device
    axes = variant.slot_axes(head_dim, num_key_value_heads).to(device, torch.long)
    frequency = variant.inverse_frequencies(head_dim, rope_theta).to(device)
    frequency = torch.where(axes < 0, 0.0, frequency)
    place = position_ids.to(torch.float32).permute(1, 2, 0)  # (B, S, 3)
    if bool((axes == FOURTH).any()):
        place = torch.cat((place, place[..., :1] - place[..., 1:2] + place[..., 2:]), dim=-1)
    if axes.ndim == 2:
        # A head has one axis: rotate (B, heads, S).
        place = place[..., axes.clamp(min=0)[:, 0]].transpose(1, 2)
        angle = place[..., None] * frequency[:, None]
    else:
        angle = place[..., axes.clamp(min=0)] * frequency
    cos, sin = angle.cos(), angle.sin()
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
    low, high = x.chunk(2, dim=-1)
    half = torch.cat((-high, low), dim=-1)
    return (x * cos + half * sin).to(x.dtype)
