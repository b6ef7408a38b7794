"""Semantic preference (HoPE, 2505.20444): does a similar key outscore an unrelated one at every distance?

With query components i.i.d. of variance sigma^2, the expected advantage of a similar key at distance (dt, dx, dy) is
S = 2 sigma^2 * (sum over slots of cos(distance on the slot's axis * theta_i)); a slot that is not rotated counts 1.
Everything here is S / (2 sigma^2): at most d/2, and the property holds where it is not negative.
x counts columns (axis w), y rows (axis h). Distances are positions unless a name says frames.

Two accountings. The paper's proof lets dt grow with dx, dy bounded. In the layouts themselves dx and dy may grow with
time: the diagonal one adds t to both, so two frames far apart are as far apart in x and y, which no choice of temporal
frequencies can help. `frame_step` says what a layout does, and `over_frames` follows it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hope_core.designs import Cells
from hope_core.rotary import apply_rotary, rotary_tables
from hope_core.variants import Variant

_CHUNK = 65536


def preference(
    variant: Variant,
    dt: Tensor | float,
    dx: Tensor | float = 0.0,
    dy: Tensor | float = 0.0,
    *,
    head_dim: int = 128,
    rope_theta: float = 1e6,
    num_key_value_heads: int = 8,
) -> Tensor:
    """S / (2 sigma^2) at distances in positions (any shapes that broadcast), float64.

    Head-wise allocations: the mean over the heads.
    """
    axes, theta = _slots(variant, head_dim, rope_theta, num_key_value_heads)
    t, x, y = torch.broadcast_tensors(*(torch.as_tensor(d, dtype=torch.float64) for d in (dt, dx, dy)))
    distance = (t, y, x, t - y + x)
    total = torch.zeros_like(t)
    for axis, d in enumerate(distance):
        for frequency, number in _counted(theta[axes == axis]):
            total = total + number * torch.cos(d * frequency)
    return (total + (axes < 0).sum()) / _heads(axes)


def temporal_term(
    variant: Variant,
    dt: Tensor | float,
    *,
    head_dim: int = 128,
    rope_theta: float = 1e6,
    num_key_value_heads: int = 8,
) -> Tensor:
    """The part of `preference` from slots on t and slots not rotated (t with frequency zero), float64, shape of dt."""
    axes, theta = _slots(variant, head_dim, rope_theta, num_key_value_heads)
    dt = torch.as_tensor(dt, dtype=torch.float64)
    total = torch.full_like(dt, float((axes < 0).sum()))
    for frequency, number in _counted(theta[axes == 0]):
        total = total + number * torch.cos(dt * frequency)
    return total / _heads(axes)


def length_bound(theta: float) -> float:
    """The context length L from which cos(theta dt) is negative for some dt < L: pi / (2 theta) + 1 positions.

    With the lowest frequency of t, this is where the temporal term turns negative if all of t had it. Infinite for 0.
    Deviates: 2505.20444 concludes that S itself is then negative; that drops the spatial terms (see `preference`).
    """
    return math.pi / (2 * theta) + 1 if theta else math.inf


def temporal_bounds(
    variant: Variant, *, head_dim: int = 128, rope_theta: float = 1e6, num_key_value_heads: int = 8
) -> tuple[float, float]:
    """`length_bound` of the fastest and the slowest slot on t, in positions; infinite if no slot is on t."""
    axes, theta = _slots(variant, head_dim, rope_theta, num_key_value_heads)
    temporal = theta[axes == 0]
    if not len(temporal):
        return math.inf, math.inf
    return length_bound(float(temporal.max())), length_bound(float(temporal.min()))


def probability_negative(theta: float, length: int) -> float:
    """P[cos(theta dt) < 0] for dt uniform on 0 .. length - 1: 0 below the bound, then up to 1/2."""
    negative = 0
    for start in range(0, length, _CHUNK):
        dt = torch.arange(start, min(start + _CHUNK, length), dtype=torch.float64)
        negative += int((torch.cos(dt * theta) < 0).sum())
    return negative / length


def frame_step(variant: Variant, *, scale: float = 1.0, rows: int = 9, columns: int = 16) -> tuple[float, float, float]:
    """How far (dt, dx, dy) the same cell of the next frame is, in positions, at temporal factor `scale`.

    rows, columns: a frame's tokens; the layouts that number tokens one by one move by all of them.
    """
    size = rows * columns
    index = torch.arange(2 * size)
    number = {"frames": 2.0, "rows": float(rows), "columns": float(columns), "factor": scale}
    block = {name: torch.tensor([value], dtype=torch.float64) for name, value in number.items()}
    cell = index % size
    places, _ = variant.positions.place(
        Cells(
            f=(index // size).to(torch.float64),
            y=(cell // columns).to(torch.float64),
            x=(cell % columns).to(torch.float64),
            block=torch.zeros(2 * size, dtype=torch.long),
            **block,
        )
    )
    dt, dy, dx = (float(place[size] - place[0]) for place in places)
    return dt, dx, dy


def over_frames(
    variant: Variant,
    frames: Tensor,
    *,
    scale: float = 1.0,
    rows: int = 9,
    columns: int = 16,
    head_dim: int = 128,
    rope_theta: float = 1e6,
) -> Tensor:
    """`preference` between the same cell of two frames, with dx and dy as the variant's layout makes them grow."""
    dt, dx, dy = frame_step(variant, scale=scale, rows=rows, columns=columns)
    frames = frames.to(torch.float64)
    return preference(variant, dt * frames, dx * frames, dy * frames, head_dim=head_dim, rope_theta=rope_theta)


def minimum_over_frames(variant: Variant, frames: int, **layout: float) -> float:
    """The smallest `over_frames` at every whole distance 0 .. frames; `layout` as there."""
    return min(float(over_frames(variant, chunk, **layout).min()) for chunk in _distances(frames))  # type: ignore[arg-type]


def first_temporal_violation(
    variant: Variant, limit: int, *, head_dim: int = 128, rope_theta: float = 1e6
) -> int | None:
    """The shortest dt in positions, up to `limit`, where `temporal_term` < 0 (the proof's accounting), or None."""
    for chunk in _distances(limit):
        negative = torch.nonzero(temporal_term(variant, chunk, head_dim=head_dim, rope_theta=rope_theta) < 0)
        if len(negative):
            return int(chunk[negative[0]])
    return None


def first_violation(variant: Variant, limit: int, **layout: float) -> int | None:
    """The shortest distance in frames, up to `limit`, where an unrelated key wins (`over_frames` < 0), or None."""
    for chunk in _distances(limit):
        negative = torch.nonzero(over_frames(variant, chunk, **layout) < 0)  # type: ignore[arg-type]
        if len(negative):
            return int(chunk[negative[0]])
    return None


@dataclass(frozen=True)
class Estimate:
    """Monte Carlo mean of S with its 95 % interval, next to the closed form (`expected`)."""

    mean: float
    low: float
    high: float
    expected: float


def monte_carlo(
    variant: Variant,
    dt: float,
    dx: float = 0.0,
    dy: float = 0.0,
    *,
    mean: float = 0.5,
    deviation: float = 1.0,
    noise: float = 1.0,
    num_draws: int = 20000,
    seed: int = 0,
    head_dim: int = 128,
    rope_theta: float = 1e6,
) -> Estimate:
    """The definition itself: q R k' - q R k over random q, k' = q + noise, and an unrelated k of q's law.

    mean, deviation: of q's and k's components; noise: deviation of what is added to q.
    The pair is rotated as the model does it. For a head-wise allocation use `preference`; it has no single rotation.
    """
    source = torch.Generator().manual_seed(seed)

    def draw(center: float, spread: float) -> Tensor:
        return center + spread * torch.randn(num_draws, head_dim, generator=source, dtype=torch.float64)

    q = draw(mean, deviation)
    similar, unrelated = q + draw(0.0, noise), draw(mean, deviation)
    place = torch.tensor([[0.0, dt], [0.0, dy], [0.0, dx]])[:, None]
    cos, sin = (table.double() for table in rotary_tables(variant, place, head_dim=head_dim, rope_theta=rope_theta))
    rotated, _ = apply_rotary(q[None, None], q[None, None, :1], cos[:, 1:], sin[:, 1:])
    advantage = (rotated[0, 0] * (similar - unrelated)).sum(1)
    middle, error = float(advantage.mean()), float(advantage.std()) / math.sqrt(num_draws)
    expected = 2 * deviation**2 * float(preference(variant, dt, dx, dy, head_dim=head_dim, rope_theta=rope_theta))
    return Estimate(middle, middle - 1.96 * error, middle + 1.96 * error, expected)


def _slots(variant: Variant, head_dim: int, rope_theta: float, num_key_value_heads: int) -> tuple[Tensor, Tensor]:
    """Axes and float64 frequencies of all slots, of all heads if the allocation is head-wise."""
    axes = variant.slot_axes(head_dim, num_key_value_heads)
    # float32 frequencies would be off by 0.1 radian at a million positions
    theta = variant.frequencies.inverse_frequencies(head_dim, rope_theta, torch.float64)
    return axes, theta.expand(axes.shape)


def _heads(axes: Tensor) -> int:
    return axes.shape[0] if axes.ndim == 2 else 1


def _counted(theta: Tensor) -> list[tuple[float, int]]:
    values, numbers = theta.unique(return_counts=True)
    return list(zip(values.tolist(), numbers.tolist(), strict=True))


def _distances(last: int) -> list[Tensor]:
    return [torch.arange(start, min(start + _CHUNK, last + 1)) for start in range(0, last + 1, _CHUNK)]
