"""Bars side by side, with whiskers over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlforget.report.figure import GRID, INK, Figure, figure, label, plain, title
from rlforget.report.spread import Spread


@dataclass(frozen=True)
class Series:
    """The bars of one name and colour, one for each place on the axis."""

    name: str
    colour: str
    values: list[Spread]


def bars(names: list[str], series: Sequence[Series], axis: str, form: str) -> Figure:
    """Draw bars side by side; the whiskers reach from the lowest to the highest seed.

    Args:
        names: Of the places on the axis.
        series: Their values.
        axis: The title of the values' axis.
        form: How a value is written, as d3 takes it.
    """
    traces = [
        {
            "type": "bar",
            "x": list(range(len(names))),
            "y": plain(spread.mean for spread in one.values),
            "name": one.name,
            "marker": {"color": one.colour},
            **(_whiskers(one.values) if any(len(spread.known) > 1 for spread in one.values) else _values(form)),
            "hovertemplate": f"{one.name}: %{{y:{form}}}<extra></extra>",
        }
        for one in series
    ]
    value = {"title": title(axis), "tickformat": form.replace(".2f", ".3~f"), "zeroline": True, "zerolinecolor": GRID}
    gap = 0.35 if len(names) > 1 else 0.7
    return figure(traces, xaxis=names_axis(names), yaxis=value, barmode="group", bargap=gap)


def names_axis(names: list[str]) -> Figure:
    """Build an axis of names, at the places 0, 1, 2, …"""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [label(name) for name in names],
        "range": [-0.6, len(names) - 0.4],
        "showgrid": False,
    }


def _values(form: str) -> Figure:
    return {"texttemplate": f"%{{y:{form}}}", "textposition": "outside", "cliponaxis": False}


def _whiskers(shown: list[Spread]) -> Figure:
    error = {
        "type": "data",
        "symmetric": False,
        "array": plain(max(spread.known, default=math.nan) - spread.mean for spread in shown),
        "arrayminus": plain(spread.mean - min(spread.known, default=math.nan) for spread in shown),
        "color": INK,
        "thickness": 1.5,
    }
    return {"error_y": error}
