"""A plotly figure as plain JSON: the layout that all share, colours by role, and text made safe.

Colours are roles, `var(--…)`, that the page's style sheet fills in, once for light and once for dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
"""`data` and `layout`, as plotly.js takes them."""

COLOURS = tuple(f"var(--c{position})" for position in range(1, 7))
MUTED, INK, PAPER, GRID, BAND = "var(--muted)", "var(--ink)", "var(--paper)", "var(--grid)", "var(--band)"
HEAT = [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]]
DIVERGING = [
    *([0, "var(--warm-2)"], [0.25, "var(--warm-1)"]),
    *([0.5, "var(--heat-0)"], [0.75, "var(--heat-1)"], [1, "var(--heat-2)"]),
]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star", "hexagon", "cross")
DASHES = ("solid", "dash", "dot", "dashdot")

_LONGEST = 28  # characters of a name in a plot; the tables have it in full


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        title: The finding that it shows.
        views: One figure for each choice that its section offers, or one for all of them.
        reading: One line on how to read it, and what it is over: samples and seeds.
        height: In CSS pixels.
    """

    title: str
    views: list[Figure]
    reading: str
    height: int = 420


def figure(traces: list[Figure], **layout: Any) -> Figure:
    """Build a figure of traces and what its layout has of its own."""
    shared: Figure = {
        "autosize": True,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GRID, "font": {"color": INK}},
        "hovermode": "closest",
        "dragmode": False,  # so that a finger on the plot scrolls the page
    }
    own = {key: {**_AXIS, **value} if key in ("xaxis", "yaxis") else value for key, value in layout.items()}
    return {"data": traces, "layout": shared | own}


_AXIS = {
    "automargin": True,
    "fixedrange": True,
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "ticks": "",
}


def label(text: str, longest: int = _LONGEST) -> str:
    """Make a text safe to show in a plot: plotly reads some HTML in it. Long ones are cut."""
    line = printable(text)
    return html.escape(line if len(line) <= longest else f"{line[: longest - 1]}…")


def printable(text: str) -> str:
    """Put a text on one line, without characters that cannot be shown."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def title(text: str) -> Figure:
    """Build an axis title."""
    return {"text": text, "standoff": 8}


def plain(values: Iterable[float]) -> list[float | None]:
    """Return numbers for JSON, None where there is none."""
    return [value if math.isfinite(value) else None for value in values]


def turn(things: Sequence[str], position: int) -> str:
    """Return one of a few things, in turn."""
    return things[position % len(things)]


def span(values: Iterable[float], *, start: float, end: float, pad: float = 0.06) -> list[float] | None:
    """Return an axis range that shows all values, and from `start` to `end` at least; None lets plotly choose."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min([*known, start]), max([*known, end])
    edges = [low - pad * (high - low), high + pad * (high - low)]
    return edges if all(map(math.isfinite, edges)) else None
