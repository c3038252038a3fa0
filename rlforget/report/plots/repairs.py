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
_LABEL_SIDES = {
    Family.SUBSPACE: "top left",
    Family.SCORE: "top left",
    Family.TRAINING: "middle left",
    Family.CONTROL: "middle left",
}


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
    layout: dict[str, Any] = {
        "xaxis": {
            "title": title("share of the later domains' gain kept"),
            "tickformat": ".0%",
            "range": span(kept, start=0.8, end=1.02),
        },
        "yaxis": {
            "title": title("share of the loss regained"),
            "tickformat": ".0%",
            "range": span(regained, start=0, end=1),
        },
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
    return Plot(story.repairs_finding(found), [figure(traces, **layout)], reading, height=600)


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
    named = _named(found)
    return {
        **_marks(same, position, size=12),
        **_whiskers(same, found),
        "x": plain(repair.kept.mean for repair in same),
        "y": plain(repair.regained.mean for repair in same),
        "name": label(same[0].rule),
        "mode": "lines+markers+text",
        "line": {"color": _FAMILY_COLOURS[same[0].family], "width": 1},
        "text": [label(repair.label) if repair in named else "" for repair in same],
        "textposition": _label_side(same[0]),
        "textfont": {"size": 12},
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


def _label_side(repair: RepairOverSeeds) -> str:
    """Where the name of a repair stands: those of the best lie near one another."""
    dense = repair.family is Family.SUBSPACE and repair.fraction is None
    return "bottom left" if dense else _LABEL_SIDES[repair.family]


def _named(found: OverSeeds) -> list[RepairOverSeeds | None]:
    """The few repairs whose names stand in the plot: the best dense and sparse rollback, training, and control."""
    ours = (Family.SUBSPACE, Family.SCORE)
    rollbacks = [found.best(*ours, sparse=sparse) for sparse in (False, True)]
    return [*rollbacks, found.best(Family.TRAINING), found.best(Family.CONTROL)]


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
