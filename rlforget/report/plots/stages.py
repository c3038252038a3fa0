"""A history: its stages as a graph, what was measured at each, and which stage each layer's weights are from."""

from __future__ import annotations

import math

from rlforget.report.figure import (
    COLOURS,
    DASHES,
    INK,
    MUTED,
    PAPER,
    SYMBOLS,
    Figure,
    Plot,
    figure,
    label,
    plain,
    title,
    turn,
)
from rlforget.report.history_story import Blamed, Node, Told
from rlforget.report.wording import percent

_MOST_NAMED = 24  # stages whose names stand in the graph
_MOST_LINES = 8  # metrics


def graph_plot(told: Told) -> Plot:
    """The stages in the order of their commits, a branch a row; lines lead from each to its parent."""
    places = {node.key: (place, node.lane) for place, node in enumerate(told.nodes)}
    edges = [(places[node.parent], places[node.key]) for node in told.nodes if node.parent is not None]
    joined = [end for start, stop in edges for end in (start, (start[0] + 0.5, stop[1]), stop, (None, stop[1]))]
    lines = {
        "x": [x for x, _ in joined],
        "y": [-y for _, y in joined],
        "mode": "lines",
        "line": {"color": MUTED, "width": 2},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    few = len(told.nodes) <= _MOST_NAMED
    dots = {
        "x": [place for place, _ in places.values()],
        "y": [-lane for _, lane in places.values()],
        "mode": "markers+text" if few else "markers",
        "text": [label(node.shown) for node in told.nodes],
        "textposition": "top center",
        "textfont": {"size": 12},
        "marker": {
            "color": [turn(COLOURS, node.lane) for node in told.nodes],
            "symbol": ["diamond" if node.head else "circle" for node in told.nodes],
            "size": [17 if node.head else 13 for node in told.nodes],
            "line": {"color": [INK if node.tags else PAPER for node in told.nodes], "width": 2},
            "opacity": 1,
        },
        "customdata": [[label(node.identity, 60), label(node.message, 60), _moved(node)] for node in told.nodes],
        "hovertemplate": "<b>%{text}</b> %{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        "showlegend": False,
    }
    count, lanes = len(told.nodes), 1 + max(node.lane for node in told.nodes)
    across = {"title": title("stages, in the order of their commits"), "range": [-0.6, count - 0.4], "dtick": 1}
    rows = {
        "title": title("branch"),
        "tickvals": [-lane for lane in range(lanes)],
        "ticktext": [str(lane + 1) for lane in range(lanes)],
        "range": [0.6 - lanes, 0.7],
    }
    reading = "A line leads from each stage to its parent; the diamond is HEAD, a dark ring a tag. n: every coordinate."
    drawn = figure([lines, dots], xaxis=across | {"showticklabels": False}, yaxis=rows)
    return Plot(told.graph_finding, [drawn], reading, height=170 + 70 * lanes)


def _moved(node: Node) -> str:
    return "" if math.isnan(node.share) else f"{percent(node.share, 1)} of the coordinates changed"


def metrics_plot(told: Told) -> Plot | None:
    """The metrics of the stages on the way to HEAD; None where none was kept."""
    names = told.drawn[:_MOST_LINES]
    if not names:
        return None
    places = list(range(len(told.line)))
    stages = [label(node.name) for node in told.line]
    traces = [
        {
            "x": places,
            "y": plain(node.metrics.get(name, math.nan) for node in told.line),
            "name": label(name),
            "mode": "lines+markers",
            "connectgaps": True,
            "line": {"color": turn(COLOURS, position), "dash": turn(DASHES, position // len(COLOURS)), "width": 2},
            "marker": {"symbol": turn(SYMBOLS, position), "size": 9},
            **_whiskers([node.errors.get(name, math.nan) for node in told.line]),
            "text": stages,
            "hovertemplate": "%{fullData.name} at %{text}: %{y:.3g}<extra></extra>",
        }
        for position, name in enumerate(names)
    ]
    after = {
        "tickvals": places,
        "ticktext": stages,
        "range": [-0.25, len(places) - 0.75],
        "title": title("stage, on the way to HEAD"),
    }
    reading = "What was kept at each commit, by --metric or by what made the stage; a stage without it has no mark."
    if any("error_y" in trace for trace in traces):
        reading += " Whiskers: one standard error."
    if len(names) < len({name for node in told.line for name in node.metrics}):
        reading += " The table has all of them."
    return Plot(told.metrics_finding, [figure(traces, xaxis=after, yaxis={"title": title("value")})], reading)


def _whiskers(errors: list[float]) -> Figure:
    if not any(map(math.isfinite, errors)):
        return {}
    return {"error_y": {"type": "data", "array": plain(errors), "thickness": 1.5, "width": 4}}


def blame_plot(blamed: Blamed) -> Plot:
    """For each layer the share of its coordinates that the base and each stage changed last."""
    rows = list(range(len(blamed.layers)))[::-1]  # plotly counts rows from below
    names = ["elsewhere" if layer is None else f"layer {layer}" for layer in blamed.layers]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": plain(shares[position] for shares in blamed.layers.values()),
            "y": rows,
            "name": label(stage),
            "marker": _filling(position),
            "customdata": names,
            "hovertemplate": "%{customdata}: %{x:.1%} last changed by %{fullData.name}<extra></extra>",
        }
        for position, stage in enumerate(blamed.stages)
    ]
    share = {"title": title("share of the layer's coordinates"), "tickformat": ".0%", "range": [0, 1]}
    layers = {"tickvals": rows, "ticktext": names, "range": [-0.6, len(rows) - 0.4], "showgrid": False}
    reading = "The colour is the stage that last changed a weight; the base's are as they were. n: every coordinate."
    drawn = figure(traces, xaxis=share, yaxis=layers, barmode="stack", bargap=0.25)
    return Plot(blamed.finding, [drawn], reading, height=150 + 30 * len(rows))


def _filling(position: int) -> Figure:
    """The base in grey, each stage in a colour; hatched where an earlier one has the colour."""
    if position == 0:
        return {"color": MUTED}
    shapes = ("", "/", ".", "x")
    return {"color": turn(COLOURS, position - 1), "pattern": {"shape": turn(shapes, (position - 1) // len(COLOURS))}}
