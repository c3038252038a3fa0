"""What the repairs give back against what they keep."""

from __future__ import annotations

import math
from typing import Any

from rlforget.report import story
from rlforget.report.families import Family
from rlforget.report.figure import COLOURS, MUTED, PAPER, SYMBOLS, Figure, Plot, figure, label, plain, span, title, turn
from rlforget.report.over_seeds import OverSeeds, RepairOverSeeds
from rlforget.report.spread import Spread
from rlforget.report.wording import percent

_FAMILY_COLOURS = {
    Family.SUBSPACE: COLOURS[0],
    Family.SCORE: COLOURS[1],
    Family.TRAINING: COLOURS[2],
    Family.CONTROL: MUTED,
}
_HEIGHT = 600
_PLOT = 430  # of these the axis is long, nearly
_LINE = 17  # pixels from a name to the next below it
_FLOOR = -0.25  # where less is regained, an arrow at the lower edge says how much


def repairs_plot(found: OverSeeds) -> Plot:
    """What every repair gives back against what it keeps: a line a rule over its fractions, small marks for seeds."""
    traces = []
    for position, rule in enumerate(dict.fromkeys(repair.rule for repair in found.repairs)):
        same = [repair for repair in found.repairs if repair.rule == rule]
        if len(found.seeds) > 1:
            traces.append({**_marks(same, position, size=5), **_single_seeds(same)})
        traces.append(_rule_means(same, position, found))
    traces.append(_front(found))
    kept, regained = ([v for r in found.repairs for v in getattr(r, key).known] for key in ("kept", "regained"))
    below = [repair for repair in found.repairs if repair.regained.mean < _FLOOR]
    up = span([value for value in regained if value >= _FLOOR], start=0, end=1)
    if up and below:  # room for what is told at the edge
        up[0] -= (up[1] - up[0]) * _LINE * len(below) / _PLOT
    layout: dict[str, Any] = {
        "xaxis": {
            "title": title("share of the later domains' gain kept"),
            "tickformat": ".0%",
            "range": span(kept, start=0.95, end=1.01),
        },
        "yaxis": {"title": title("share of the loss regained"), "tickformat": ".0%", "range": up},
        "annotations": [*_names(found, up), *_arrows(below)],
        "shapes": [
            {"type": "line", "layer": "below", "line": {"color": MUTED, "width": 1, "dash": "dot"}, **ends}
            for ends in (
                {"xref": "x", "yref": "paper", "x0": 1, "x1": 1, "y0": 0, "y1": 1},
                {"xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 1, "y1": 1},
            )
        ],
    }
    reading = f"Up and to the right is better; the dotted lines are a whole repair at no cost. {story.sampled(found)}"
    if any("error_x" in trace for trace in traces):
        reading += " Whiskers: one standard error over prompts."
    return Plot(story.repairs_finding(found), [figure(traces, **layout)], reading, height=_HEIGHT)


def _marks(same: list[RepairOverSeeds], position: int, *, size: int) -> Figure:
    """The marks of a rule: the colour of its family, a shape of its own."""
    return {
        "legendgroup": f"rule {position}",
        "marker": {
            "color": _FAMILY_COLOURS[same[0].family],
            "symbol": turn(SYMBOLS, position),
            "size": size,
            "line": {"color": PAPER, "width": 1 if size > 8 else 0},
        },
    }


def _single_seeds(same: list[RepairOverSeeds]) -> Figure:
    return {
        "x": plain(value for repair in same for value in repair.kept.values),
        "y": plain(value for repair in same for value in repair.regained.values),
        "mode": "markers",
        "opacity": 0.5,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _rule_means(same: list[RepairOverSeeds], position: int, found: OverSeeds) -> Figure:
    return {
        **_marks(same, position, size=12),
        **_whiskers(same, found),
        "x": plain(repair.kept.mean for repair in same),
        "y": plain(repair.regained.mean for repair in same),
        "name": label(same[0].rule),
        "mode": "lines+markers",
        "line": {"color": _FAMILY_COLOURS[same[0].family], "width": 1},
        "customdata": [
            [
                label(repair.label),
                _told(repair.kept, repair.kept_stderr, found),
                _told(repair.regained, repair.regained_stderr, found),
                repair.norm_share.text(percent),
            ]
            for repair in same
        ],
        "hovertemplate": "<b>%{customdata[0]}</b><br>regained %{customdata[2]}<br>kept %{customdata[1]}"
        "<br>norm moved %{customdata[3]}<extra></extra>",
    }


def _whiskers(same: list[RepairOverSeeds], found: OverSeeds) -> Figure:
    """The standard errors over prompts, of one seed; over several the seeds themselves are drawn."""
    errors = {"error_x": [one.kept_stderr.mean for one in same], "error_y": [one.regained_stderr.mean for one in same]}
    if len(found.seeds) > 1 or not any(math.isfinite(error) for both in errors.values() for error in both):
        return {}
    style = {"type": "data", "thickness": 1, "width": 0, "color": _FAMILY_COLOURS[same[0].family]}
    return {key: {**style, "array": plain(values)} for key, values in errors.items()}


def _told(share: Spread, error: Spread, found: OverSeeds) -> str:
    """A share: over seeds with the lowest and the highest, of one with its error over prompts."""
    if len(found.seeds) > 1 or not math.isfinite(error.mean):
        return share.text(percent)
    return f"{percent(share.mean)} ± {percent(error.mean)}"


def _names(found: OverSeeds, up: list[float] | None) -> list[Figure]:
    """The names of a few repairs, to the left of their marks, each below the one before it."""
    ours = (Family.SUBSPACE, Family.SCORE)
    best = [*(found.best(*ours, sparse=sparse) for sparse in (False, True)), found.best(Family.TRAINING)]
    chosen = [one for one in (*best, found.best(Family.CONTROL)) if one is not None and math.isfinite(one.worth)]
    chosen.sort(key=lambda one: -one.regained.mean)
    pixels = _PLOT / (up[1] - up[0]) if up else 0.0  # a unit of the axis, nearly
    drawn: list[Figure] = []
    last = math.inf
    for one in chosen:
        height = pixels * one.regained.mean
        last = min(height, last - _LINE)
        drawn.append(
            {
                "x": one.kept.mean,
                "y": one.regained.mean,
                "text": label(one.label),
                "ax": -80,
                "ay": height - last,
                "xanchor": "right",
                "font": {"size": 12},
                "arrowhead": 0,
                "arrowwidth": 1,
                "arrowcolor": MUTED,
                "standoff": 7,
            }
        )
    return drawn


def _arrows(below: list[RepairOverSeeds]) -> list[Figure]:
    """What lies below the plot's lower edge, told there."""
    return [
        {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 0,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 4 + _LINE * position,
            "text": label(f"↓ {one.label}: {percent(one.regained.mean)} regained", 60),
            "showarrow": False,
            "font": {"size": 12, "color": MUTED},
        }
        for position, one in enumerate(sorted(below, key=lambda one: one.regained.mean))
    ]


def _front(found: OverSeeds) -> Figure:
    """The repairs that no other one beats in both: the Pareto front."""
    means = {(r.kept.mean, r.regained.mean) for r in found.repairs if math.isfinite(r.worth)}
    best = sorted(a for a in means if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in means))
    return {
        "x": [kept for kept, _ in best],
        "y": [regained for _, regained in best],
        "name": "none better in both",
        "mode": "lines",
        "line": {"color": MUTED, "width": 1, "dash": "dash", "shape": "vh"},
        "hoverinfo": "skip",
    }
