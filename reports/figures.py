"""A report's figures, each an SVG element.

Variants differ in colour (Okabe and Ito's palette, safe for colour-blind readers), in dash and in marker.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log2, log10
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex

from reports.svg import INK, draw

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F", "#7F7F7F")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
AXIS_COLOURS = {0: "#E69F00", 1: "#0072B2", 2: "#009E73", 3: "#CC79A7", -1: "none"}
# Least distance between two labels at the right of a panel, in per cent of accuracy.
LABEL_GAP = 8
MOST_TICKS = 8
HEAT = LinearSegmentedColormap.from_list("heat", ["#f7f4ec", "#f2c46d", "#d5703a", "#8c2d54", "#2d1247"])


@dataclass(frozen=True)
class Look:
    colour: str
    dash: Any
    marker: str


def looks(variants: Sequence[str], baseline: str) -> dict[str, Look]:
    """One look per variant, the same in every figure; the baseline is in the page's ink."""
    found, place = {}, 0
    for variant in variants:
        if variant == baseline:
            found[variant] = Look(INK, (0, (4, 2)), "o")
            continue
        shift = place // len(COLOURS)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[(place + 1 + shift) % len(MARKERS)]
        found[variant] = Look(colour, DASHES[shift % len(DASHES)], marker)
        place += 1
    return found


def context_axis(axes: Axes, sizes: Sequence[float], labels: Sequence[str], unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), list(labels))
    axes.minorticks_off()
    axes.set_xlabel(f"context ({unit})")


def accuracy_by_context(
    name: str,
    alt: str,
    rows: pd.DataFrame,
    looks_of: dict[str, Look],
    *,
    unit: str,
    chance: float | None,
    train_length: float | None,
    banded: Collection[str],
    size: tuple[float, float] = (4.6, 3.3),
) -> str:
    """rows: variant, size, context, accuracy, low, high. Bands for the variants in banded; dotted: training length."""

    def paint(axes: Axes) -> None:
        places = rows[["size", "context"]].drop_duplicates().sort_values("size")
        if len(places) > 1:
            context_axis(axes, list(places["size"]), list(places.context), unit)
        if train_length is not None:
            axes.axvline(train_length, color=INK, linewidth=0.8, linestyle=":")
        if chance is not None:
            axes.axhline(100 * chance, color=INK, linewidth=0.6, linestyle=(0, (1, 3)))
            axes.annotate(
                "chance", (1, 100 * chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
        for variant, line in rows.groupby("variant", sort=False):
            look, line = looks_of[str(variant)], line.sort_values("size")
            if variant in banded:
                axes.fill_between(
                    line["size"], 100 * line.low, 100 * line.high, color=look.colour, alpha=0.16, linewidth=0
                )
            axes.plot(
                line["size"],
                100 * line.accuracy,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markersize=5,
                linewidth=1.8,
                zorder=3 if look.colour == INK else 2,
            )
        axes.set_ylim(0, 102)
        axes.set_ylabel("accuracy (%)")

    return draw(name, alt, size, paint)


def forest(name: str, alt: str, rows: Sequence[tuple[str, float, float, float, str, str]]) -> str:
    """Differences with intervals: (label, value, low, high, colour, marker), in accuracy; zero is the baseline."""

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, (_, value, low, high, colour, marker) in enumerate(rows):
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
            axes.plot([100 * value], [place], color=colour, marker=marker, markersize=6)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("difference in accuracy (points)")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return draw(name, alt, (5.6, 0.7 + 0.3 * max(2, len(rows))), paint, margins=None)


def heat_colours(value: float) -> tuple[str, str]:
    """Background and ink of a heat map's cell; value 0..1, on one scale for all maps."""
    return to_hex(HEAT(value)), "#ffffff" if value > 0.45 else "#000000"


def scale_response(name: str, alt: str, points: pd.DataFrame, look: Look, published: float | None) -> str:
    """points: seed, scale, accuracy, low, high, state, chosen, per_kind.

    Marks: seeds with their intervals, hollow where pruned, ringed where chosen. Where all seeds tried the same scales,
    thick: mean over seeds, and thin: one line per kind of question; else one line per seed.
    """
    scales = sorted(set(points.scale))
    same_scales = points.groupby("seed").scale.apply(frozenset).nunique() == 1

    def paint(axes: Axes) -> None:
        ticks = scales if len(scales) <= MOST_TICKS else octaves(scales[0], scales[-1])
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
        axes.minorticks_off()
        if published is not None:
            axes.axvline(published, color=INK, linewidth=0.8, linestyle=":")
        kinds = pd.DataFrame(list(points.per_kind), index=points.scale).groupby(level=0).mean()
        if same_scales and kinds.shape[1] > 1:
            height = -inf
            for place, kind in enumerate(kinds.iloc[-1].sort_values(kind="stable").index):
                axes.plot(kinds.index, 100 * kinds[kind], color=INK, linewidth=0.9, linestyle=DASHES[1 + place % 3])
                height = max(height + LABEL_GAP, 100 * kinds[kind].iloc[-1])
                end = (kinds.index[-1], height)
                axes.annotate(str(kind), end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        lines = [points.groupby("scale").accuracy.mean()] if same_scales else []
        lines += [] if same_scales else [own.set_index("scale").accuracy for _, own in points.groupby("seed")]
        for line in lines:
            line = line.sort_index()
            axes.plot(line.index, 100 * line, color=look.colour, linewidth=2 if same_scales else 1.2)
        axes.vlines(points.scale, 100 * points.low, 100 * points.high, color=look.colour, linewidth=0.8, alpha=0.6)
        for point in points.itertuples():
            face = "none" if point.state == "pruned" else look.colour
            here = ([point.scale], [100 * point.accuracy])
            axes.plot(*here, look.marker, color=look.colour, mfc=face, markersize=4)
            if point.chosen:
                axes.plot(*here, "o", color=INK, mfc="none", markersize=10)
        axes.set_ylim(0, 102)
        axes.set_xlabel("temporal scale at test time")
        axes.set_ylabel("validation accuracy (%)")

    return draw(name, alt, (3.8, 2.7), paint, margins=(0.52, 0.58, 0.46, 0.08))


def octaves(low: float, high: float) -> list[float]:
    """The powers of two from low to high, and at least those next to them."""
    return [2.0**power for power in range(floor(log2(low)), ceil(log2(high)) + 1)]


def training_curve(name: str, alt: str, curves: pd.DataFrame, looks_of: dict[str, Look], ylabel: str) -> str:
    """curves: variant, seed, step, value. The mean over seeds, and each seed as a thin line."""

    def paint(axes: Axes) -> None:
        for variant, lines in curves.groupby("variant", sort=False):
            look = looks_of[str(variant)]
            for _, line in lines.groupby("seed"):
                axes.plot(line.step, line.value, color=look.colour, linewidth=0.5, alpha=0.5)
            mean = lines.groupby("step").value.mean()
            order = 3 if look.colour == INK else 2
            axes.plot(mean.index, mean, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=order)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=0)

    return draw(name, alt, (4.6, 3.0), paint, margins=(0.66, 0.12, 0.46, 0.08))


def preference_curves(name: str, alt: str, rows: Sequence[tuple[Look, Sequence[float], Sequence[float]]]) -> str:
    """rows: look, distances in frames, S / (2 sigma^2) at them. Below zero the property is broken."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.9)
        for look, frames, values in rows:
            order = 3 if look.colour == INK else 2
            axes.plot(frames, values, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=order)
        axes.set_xscale("log")
        decades = [10**power for power in range(1 + int(log10(max(frames[-1] for _, frames, _ in rows))))]
        axes.set_xticks(decades, [f"{decade:,}" for decade in decades])
        axes.minorticks_off()
        axes.set_xlabel("distance (frames)")
        axes.set_ylabel("S / (2 sigma²)")

    return draw(name, alt, (4.6, 3.0), paint, margins=(0.66, 0.12, 0.46, 0.08))


def slot_map(name: str, alt: str, rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """rows: (label, axis of each slot: 0 t, 1 h, 2 w, 3 a fourth, -1 not rotated), highest frequency first."""

    def paint(axes: Axes) -> None:
        for place, (_, slots) in enumerate(rows):
            for slot, axis in enumerate(slots):
                edge = INK if axis == -1 else "none"
                axes.add_patch(
                    mpl.patches.Rectangle((slot, place - 0.36), 0.9, 0.72, fc=AXIS_COLOURS[axis], ec=edge, lw=0.4)
                )
        axes.set_xlim(0, max(len(slots) for _, slots in rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_xlabel("slot (highest frequency first)")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)

    return draw(name, alt, (6.4, 0.7 + 0.3 * len(rows)), paint, margins=None)


def swatch(name: str, look: Look) -> str:
    """A legend entry's line and marker as a small SVG element."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1, 2], [0, 0, 0], color=look.colour, linestyle=look.dash, linewidth=2)
        axes.plot([1], [0], look.marker, color=look.colour, markersize=6)
        axes.set_xlim(-0.1, 2.1)
        axes.set_axis_off()

    return draw(name, "", (0.42, 0.16), paint, margins=(0, 0, 0, 0))
