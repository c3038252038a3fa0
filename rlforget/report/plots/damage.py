"""Damage: predicted and measured, where it lies, and in how few directions."""

from __future__ import annotations

import math

from rlforget.report import damage_story as story
from rlforget.report.figure import BAND, COLOURS, DIVERGING, MUTED, Figure, Plot, figure, label, plain, title
from rlforget.report.measured_files import DomainDamage, Subspace, TensorDamage
from rlforget.report.plots.grid import Grid
from rlforget.report.results import Place
from rlforget.report.wording import number

_STEPS = 40
_LONGEST_NAME = 72
_MOST_TENSORS = 3


def damage_plots(found: list[DomainDamage]) -> list[Plot]:
    """For each domain the rise of its loss along the way, and where the prediction puts it."""
    plots = []
    for one in found:
        over = f"n = {one.count} completions{'' if one.seed is None else f', seed {one.seed}'}."
        reading = "From before (0) to now (1): the line is predicted from before, the points are measured. "
        plots.append(Plot(story.damage_finding(one), [_curve(one)], f"{reading}Bars: one standard error. {over}"))
        if one.tensors:
            grid = Grid.of([tensor.place for tensor in one.tensors])
            reading = f"Blue raises the loss of {one.domain}, brown lowers it, each beside the rest of the change. "
            plots.append(Plot(story.map_finding(one), [_map(one.tensors, grid)], reading + over, height=grid.height))
    return plots


def _curve(found: DomainDamage) -> Figure:
    traces: list[Figure] = []
    if found.bends:
        t = [step / _STEPS for step in range(_STEPS + 1)]
        width = found.total.stderr if math.isfinite(found.total.stderr) else 0.0
        for sign, fill in ((-1, {}), (1, {"fill": "tonexty", "fillcolor": BAND})):
            band = [found.at(one) + sign * one * width for one in t]
            hidden = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            traces.append({"x": t, "y": plain(band), "mode": "lines", **hidden, **fill})
        traces.append(
            {
                "x": t,
                "y": plain(found.at(one) for one in t),
                "name": label(f"predicted ({found.curvature})"),
                "mode": "lines",
                "line": {"color": COLOURS[0], "width": 3},
                "hovertemplate": "t = %{x:.2f}: %{y:.3f} nats predicted<extra></extra>",
            }
        )
    else:
        point = {"x": [1], "y": plain([found.total.value]), "mode": "markers", "name": "predicted"}
        traces.append({**point, "marker": {"color": COLOURS[0], "size": 12}})
    t = [point.t for point in found.points]
    traces.append(
        {
            "x": plain(t),
            "y": plain(point.rise.value for point in found.points),
            "name": "measured",
            "mode": "markers",
            "marker": {"color": COLOURS[1], "symbol": "square", "size": 9},
            "error_y": {"type": "data", "array": plain(p.rise.stderr for p in found.points), "thickness": 1.5},
            "hovertemplate": "t = %{x:.2f}: %{y:.3f} nats measured<extra></extra>",
        }
    )
    traces.append(
        {
            "x": plain(t),
            "y": plain(point.kl for point in found.points),
            "name": "KL(before ‖ there)",
            "mode": "markers",
            "marker": {"color": COLOURS[2], "symbol": "diamond-open", "size": 9},
            "hovertemplate": "t = %{x:.2f}: KL %{y:.3f} nats<extra></extra>",
        }
    )
    rise = {"title": title("rise of −log π, nats a completion"), "zeroline": True, "zerolinecolor": MUTED}
    return figure(traces, xaxis={"title": title("t, from before (0) to now (1)")}, yaxis=rise)


def _map(tensors: list[TensorDamage], grid: Grid) -> Figure:
    damages: dict[Place, list[TensorDamage]] = {}
    for tensor in tensors:
        damages.setdefault(tensor.place, []).append(tensor)

    def value(place: Place) -> float:
        return sum(one.damage for one in damages[place]) if place in damages else math.nan

    lines = {
        place: [
            f"{label(one.name, _LONGEST_NAME)}: first order {number(one.first, 4)}, second {number(one.second, 4)} nats"
            for one in found[:_MOST_TENSORS]
        ]
        for place, found in damages.items()
    }
    top = max((abs(value(place)) for place in damages if math.isfinite(value(place))), default=0.0)
    scale = {"zmin": -top if top else None, "zmax": top or None, "zmid": 0, "colorscale": DIVERGING}
    return grid.figure(value, lines, ".2f", scale)


def subspace_plot(found: Subspace) -> Plot:
    """The share of the damage that undoing some directions undoes, over their number."""
    colours = (COLOURS[0], COLOURS[1], MUTED)
    symbols = ("circle", "square", "cross")
    traces = [
        {
            "x": [point.directions for point in points],
            "y": plain(point.explained for point in points),
            "name": label(name, 40),
            "mode": "lines+markers",
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 8},
            "customdata": [number(point.side_effect, 3) for point in points],
            "hovertemplate": "%{x} directions: %{y:.1%} undone, side effect %{customdata} nats<extra></extra>",
        }
        for (name, points), colour, symbol in zip(found.curves.items(), colours, symbols, strict=True)
    ]
    share = {"title": title("share of the damage undone, linear model"), "tickformat": ".0%"}
    counts = sorted({point.directions for points in found.curves.values() for point in points if point.directions})
    across = {
        "type": "log",
        "title": title("directions undone (logarithmic)"),
        "tickvals": counts[:: len(counts) // 8 + 1],
    }
    seed = "" if found.seed is None else f", seed {found.seed}"
    over = "" if found.samples is None else f" n = {found.samples} completions a domain{seed}."
    reading = "The steeper the line, the fewer directions hold the damage; random directions are the control."
    return Plot(story.subspace_finding(found), [figure(traces, xaxis=across, yaxis=share)], reading + over)
