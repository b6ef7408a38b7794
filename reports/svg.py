"""One panel of matplotlib as SVG text that repeats byte for byte and takes its ink from the page.

Ink and grid are drawn in two stand-in colours that become currentColor and a style variable of the page, so one figure
serves light, dark and print.
"""

import io
import re
from collections.abc import Callable
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, GRID = "#010203", "#040506"
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


def draw(
    name: str,
    alt: str,
    size: tuple[float, float],
    paint: Callable[[Axes], None],
    margins: tuple[float, float, float, float] | None = (0.52, 0.12, 0.46, 0.08),
) -> str:
    """One panel as an inline SVG element with alt text; name keeps its ids apart from the others'.

    size and margins (left, right, bottom, top) in inches; without margins they are found, which is slow.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout=None if margins else "constrained")
        if margins:
            left, right, bottom, top = margins
            width, height = size
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
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
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opening, body = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    body = re.sub(r"<[^>]+>", lambda tag: lighter(tag[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg role="img" aria-label="{escape(alt)}" {view[0] if view else ""} {links}>{body}'


def lighter(tag: str) -> str:
    """One tag of the drawing as the page wants it; text between tags is not touched."""
    tag = re.sub(r' id="[A-Za-z]+[A-Za-z0-9.]*_\d+"', "", tag)
    tag = re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    return tag.replace(INK, "currentColor").replace(GRID, "var(--grid)")
