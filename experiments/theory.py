"""`hope theory`: how far each variant keeps a similar key above an unrelated one, as a table and figures."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import torch

from hope_core import Variant, get_variant
from hope_core.theory import (
    first_temporal_violation,
    first_violation,
    minimum_over_frames,
    over_frames,
    probability_negative,
    temporal_bounds,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

HEAD_DIM = 128
ROPE_THETA = 1e6
LIMIT = 200_000  # frames searched for the first violation
SLOT_NAMES = ("not rotated", "t", "h", "w", "fourth")
SLOT_COLORS = ("#d9d9d9", "#d55e00", "#0072b2", "#56b4e9", "#009e73")


def run(names: list[str], out_dir: Path) -> None:
    """Print the table for these variants; write theory.md, preference, violation, slots as SVG and PNG to the folder.

    Sizes of Qwen2-VL (head_dim 128, rope_theta 1e6), frames of 9 x 16 tokens, every variant at temporal factor 1.
    Raises ValueError for an unknown variant.
    """
    variants = [get_variant(name) for name in names]
    violations = {variant.name: first_violation(variant, LIMIT) for variant in variants}
    text = table(variants, violations)
    print(text)
    (out_dir / "theory.md").write_text(text + "\n")
    _preference_figure(variants, out_dir)
    _violation_figure(violations, out_dir)
    _slot_figure(variants, out_dir)
    print(f"figures: {', '.join(sorted(path.name for path in out_dir.glob('*.svg')))} (and .png) in {out_dir}")


COLUMNS = (
    "variant",
    "bound, fastest t",
    "bound, slowest t",
    "P[cos < 0], slowest t, L 50,000",
    "temporal term < 0 from dt",
    "min S to 3,000",
    "min S to 50,000",
    "S < 0 from",
)


def table(variants: list[Variant], violations: dict[str, int | None]) -> str:
    """Markdown. Bounds, P and temporal term keep dx and dy bounded, as the proof; the rest follows each layout."""
    lines = [
        f"S / (2 sigma^2) of {HEAD_DIM // 2} slots, rope_theta {ROPE_THETA:.0e}, temporal factor 1.",
        "Bounds and dt in positions, dx and dy bounded; the last three columns in frames, dx and dy as the layout has.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- |" + " ---: |" * (len(COLUMNS) - 1),
    ]
    for variant in variants:
        fastest, slowest = temporal_bounds(variant, head_dim=HEAD_DIM, rope_theta=ROPE_THETA)
        cells = [
            variant.name,
            _number(fastest),
            _number(slowest),
            f"{probability_negative(math.pi / 2 / (slowest - 1), 50_000):.3f}",
            _distance(first_temporal_violation(variant, LIMIT)),
            f"{minimum_over_frames(variant, 3_000):.2f}",
            f"{minimum_over_frames(variant, 50_000):.2f}",
            _distance(violations[variant.name]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _distance(first: int | None) -> str:
    return f"not to {LIMIT:,}" if first is None else f"{first:,}"


def _number(value: float) -> str:
    return "none" if value == float("inf") else f"{value:,.1f}"


def _preference_figure(variants: list[Variant], out_dir: Path) -> None:
    frames = torch.unique(torch.logspace(0, 5, 400).round())
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for variant, style in zip(variants, _styles(len(variants)), strict=True):
        axes.plot(frames, over_frames(variant, frames), label=variant.name, linewidth=1.2, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("distance (frames), dx and dy as the layout has them")
    axes.set_ylabel("S / (2 sigma²)")
    axes.set_title("Advantage of a similar key over an unrelated one")
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, out_dir / "preference")


def _violation_figure(violations: dict[str, int | None], out_dir: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.3 * len(violations)), layout="constrained")
    lengths = [LIMIT if first is None else first for first in violations.values()]
    bars = axes.barh(
        list(violations), lengths, color=["#d9d9d9" if v is None else "#d55e00" for v in violations.values()]
    )
    axes.bar_label(bars, [_distance(first) for first in violations.values()], fontsize=7)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("first distance (frames) with S < 0")
    axes.margins(x=0.25)
    _save(figure, out_dir / "violation")


def _slot_figure(variants: list[Variant], out_dir: Path) -> None:
    rows: list[torch.Tensor] = []
    labels: list[str] = []
    for variant in variants:
        axes_of_slots = variant.slot_axes(HEAD_DIM, 8)
        per_head = axes_of_slots if axes_of_slots.ndim == 2 else axes_of_slots[None]
        rows.extend(per_head)
        labels.extend(
            [variant.name] if len(per_head) == 1 else [f"{variant.name} head {i}" for i in range(len(per_head))]
        )
    figure, axes = plt.subplots(figsize=(10, 1.0 + 0.22 * len(rows)), layout="constrained")
    axes.imshow(
        (torch.stack(rows) + 1).numpy(),
        cmap=ListedColormap(SLOT_COLORS),
        vmin=-0.5,
        vmax=4.5,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("slot, highest frequency first")
    axes.legend(
        [Patch(color=color) for color in SLOT_COLORS],
        SLOT_NAMES,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=5,
        fontsize=7,
    )
    _save(figure, out_dir / "slots")


def _styles(number: int) -> list[dict[str, Any]]:
    dashes = ("-", "--", ":", "-.")
    return [{"color": f"C{i % 10}", "linestyle": dashes[i // 10 % len(dashes)]} for i in range(number)]


def _save(figure: plt.Figure, stem: Path) -> None:
    for ending in (".svg", ".png"):
        figure.savefig(stem.with_suffix(ending), dpi=150)
    plt.close(figure)
