"""A report's figures: SVG text that repeats byte for byte and takes its ink from the page.

Ink and grid are drawn in two stand-in colours that become currentColor and a style variable of the page, so one figure
serves light, dark and print. Variants differ in colour (Okabe and Ito's palette, safe for colour-blind readers), in
dash and in marker.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, GRID = "#010203", "#040506"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F", "#7F7F7F")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
AXIS_COLOURS = {0: "#E69F00", 1: "#0072B2", 2: "#009E73", -1: "none"}
HEAT = LinearSegmentedColormap.from_list("heat", ["#f7f4ec", "#f2c46d", "#d5703a", "#8c2d54", "#2d1247"])
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


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


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """One panel of size (inches) as an inline SVG element with alt text; name keeps its ids apart from the others'."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return inline(buffer.getvalue(), alt)


def inline(svg: str, alt: str) -> str:
    """Cut an SVG file down to its element: page ink for stand-in colours, two decimals, no header, no drawing ids."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r' id="[A-Za-z]+[A-Za-z0-9.]*_\d+"', "", body)
    body = re.sub(r"(\d+\.\d\d)\d+", r"\1", body)
    body = body.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"\n\s*", "\n", body)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{view[1] if view else ""}" xmlns="http://www.w3.org/2000/svg"'
    return f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">{body}'


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
    train_length: float,
    size: tuple[float, float] = (4.6, 3.3),
) -> str:
    """rows: variant, size, context, accuracy, low, high. A band per variant, a dotted line at the training length."""

    def paint(axes: Axes) -> None:
        places = rows[["size", "context"]].drop_duplicates().sort_values("size")
        if len(places) > 1:
            context_axis(axes, list(places["size"]), list(places.context), unit)
        axes.axvline(train_length, color=INK, linewidth=0.8, linestyle=":")
        if chance is not None:
            axes.axhline(100 * chance, color=INK, linewidth=0.6, linestyle=(0, (1, 3)))
            axes.annotate(
                "chance", (1, 100 * chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
        for variant, line in rows.groupby("variant", sort=False):
            look, line = looks_of[str(variant)], line.sort_values("size")
            axes.fill_between(line["size"], 100 * line.low, 100 * line.high, color=look.colour, alpha=0.10, linewidth=0)
            axes.plot(
                line["size"],
                100 * line.accuracy,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markersize=5,
                linewidth=1.8,
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

    return draw(name, alt, (5.6, 0.7 + 0.3 * max(2, len(rows))), paint)


def heat_map(name: str, alt: str, table: pd.DataFrame, unit: str) -> str:
    """table: depths down (0..1), contexts across, accuracy 0..1; one colour scale, 0 to 100 %, for all heat maps."""

    def paint(axes: Axes) -> None:
        values = table.to_numpy(dtype=float)
        axes.pcolormesh(values, cmap=HEAT, vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                ink = "white" if value > 0.45 else "black"
                axes.text(
                    column + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=ink
                )
        axes.set_xticks(np.arange(values.shape[1]) + 0.5, list(table.columns))
        axes.set_yticks(np.arange(values.shape[0]) + 0.5, [f"{depth:g}" for depth in table.index])
        axes.invert_yaxis()
        axes.set_xlabel(f"context ({unit})")
        axes.set_ylabel("needle depth")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return draw(name, alt, (3.0, 2.5), paint)


def scale_response(name: str, alt: str, points: pd.DataFrame, look: Look, published: float | None) -> str:
    """points: seed, scale, accuracy, state, chosen. A line per seed; hollow: pruned; ring: chosen."""

    def paint(axes: Axes) -> None:
        scales = sorted(set(points.scale))
        axes.set_xscale("log", base=2)
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.minorticks_off()
        if published is not None:
            axes.axvline(published, color=INK, linewidth=0.8, linestyle=":")
        for _, line in points.sort_values("scale").groupby("seed"):
            axes.plot(line.scale, 100 * line.accuracy, color=look.colour, linewidth=1.1, alpha=0.8)
            for point in line.itertuples():
                face = "none" if point.state == "pruned" else look.colour
                axes.plot(
                    [point.scale], [100 * point.accuracy], look.marker, color=look.colour, mfc=face, markersize=4.5
                )
                if point.chosen:
                    axes.plot([point.scale], [100 * point.accuracy], "o", color=INK, mfc="none", markersize=10)
        axes.set_ylim(0, 102)
        axes.set_xlabel("temporal scale at test time")
        axes.set_ylabel("validation accuracy (%)")

    return draw(name, alt, (3.4, 2.6), paint)


def training_curve(name: str, alt: str, curves: pd.DataFrame, looks_of: dict[str, Look], ylabel: str) -> str:
    """curves: variant, seed, step, value. The mean over seeds, and each seed as a thin line."""

    def paint(axes: Axes) -> None:
        for variant, lines in curves.groupby("variant", sort=False):
            look = looks_of[str(variant)]
            for _, line in lines.groupby("seed"):
                axes.plot(line.step, line.value, color=look.colour, linewidth=0.5, alpha=0.5)
            mean = lines.groupby("step").value.mean()
            axes.plot(mean.index, mean, color=look.colour, linestyle=look.dash, linewidth=1.6)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=0)

    return draw(name, alt, (4.6, 3.0), paint)


def slot_map(name: str, alt: str, rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """rows: (label, axis of each slot: 0 t, 1 h, 2 w, -1 not rotated), highest frequency first."""

    def paint(axes: Axes) -> None:
        for place, (_, slots) in enumerate(rows):
            for slot, axis in enumerate(slots):
                edge = GRID if axis == -1 else "none"
                axes.add_patch(
                    mpl.patches.Rectangle((slot, place - 0.36), 0.9, 0.72, fc=AXIS_COLOURS[axis], ec=edge, lw=0.6)
                )
        axes.set_xlim(0, max(len(slots) for _, slots in rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_xlabel("slot (highest frequency first)")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)

    return draw(name, alt, (6.4, 0.7 + 0.3 * len(rows)), paint)


def swatch(look: Look) -> str:
    """A legend entry's line and marker as a small SVG element."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1, 2], [0, 0, 0], color=look.colour, linestyle=look.dash, linewidth=2)
        axes.plot([1], [0], look.marker, color=look.colour, markersize=6)
        axes.set_xlim(-0.1, 2.1)
        axes.set_axis_off()

    return draw("swatch", "", (0.42, 0.16), paint)
