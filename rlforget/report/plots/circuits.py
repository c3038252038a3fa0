"""Circuits: which heads a task needs, how far they are kept, and what adapting cost."""

from __future__ import annotations

import math

from rlforget.report import circuits_story as story
from rlforget.report.circuits_file import AtSize, Circuits, Difference, HeadMap, Way
from rlforget.report.figure import (
    BAND,
    COLOURS,
    DIVERGING,
    INK,
    MUTED,
    SYMBOLS,
    Figure,
    Plot,
    figure,
    label,
    plain,
    span,
    title,
    turn,
)
from rlforget.report.wording import plural

CIRCUIT_CHOICES = ("effect on the metric", "share of all effects of the model")
"""What a reader may switch the maps between."""

_MOST_COLUMNS = 24  # with numbers in the cells
_MOST_ROWS = 40

Table = list[list[float]]


def circuit_plots(found: Circuits) -> list[Plot]:
    """The map of each model and of each difference, the retention over sizes, and the way of each fine-tune."""
    over = "" if found.prompts is None else f"n = {plural(found.prompts, 'prompt')}."
    plots = [*_maps(found, over), *_difference_maps(found, over)]
    if any(one.sizes for one in found.kept):
        reading = "Above the band is more than chance; the dashed grey line is what noise in the prompts would leave."
        plots.append(Plot(story.retention_finding(found.kept), [_retention(found)], f"{reading} {over}", height=460))
    rewarded = [way for way in found.ways if any(math.isfinite(step.reward) for step in way.steps)]
    if rewarded:
        reading = "Each line begins at the base; to the right is adapted, down is a circuit lost."
        plots.append(Plot(story.way_finding(rewarded), [_ways(rewarded)], f"{reading} {over}", height=460))
    return plots


def _maps(found: Circuits, over: str) -> list[Plot]:
    views = [[one.scores for one in found.maps], [_shares(one.scores) for one in found.maps]]
    tops = [_top(tables) for tables in views]
    return [
        Plot(
            story.map_finding(found, one),
            [
                _map(tables[position], one.mask, top, form)
                for tables, top, form in zip(views, tops, _FORMS, strict=True)
            ],
            f"Blue heads are needed, brown ones work against the task; a dot marks the circuit. {over}",
            height=_height(one),
        )
        for position, one in enumerate(found.maps)
    ]


def _difference_maps(found: Circuits, over: str) -> list[Plot]:
    base, tuned = found.base, found.maps[1:]
    relative = HeadMap(base.name, _shares(base.scores), base.mask)
    views = [
        [story.differences(base, one) for one in tuned],
        [story.differences(relative, HeadMap(one.name, _shares(one.scores), one.mask)) for one in tuned],
    ]
    tops = [_top(tables) for tables in views]
    lost = [_pairwise(base, one) for one in tuned]
    return [
        Plot(
            story.difference_finding(found, one),
            [
                _map(tables[position], lost[position], top, form)
                for tables, top, form in zip(views, tops, _FORMS, strict=True)
            ],
            f"Blue heads gained, brown ones lost; a dot marks what the circuit lost. {over}",
            height=_height(one),
        )
        for position, one in enumerate(tuned)
    ]


_FORMS = ("+.2f", "+.1%")


def _pairwise(base: HeadMap, tuned: HeadMap) -> list[list[bool]]:
    """The heads of the base's circuit that the tuned model's has not."""
    rows = zip(base.mask, tuned.mask, strict=True)
    return [[was and not now for was, now in zip(old, new, strict=True)] for old, new in rows]


def _shares(scores: Table) -> Table:
    """Each head's effect over the sum of all sizes; NaN where there is none."""
    whole = sum(abs(value) for row in scores for value in row if math.isfinite(value))
    return [[value / whole if whole and math.isfinite(whole) else math.nan for value in row] for row in scores]


def _top(tables: list[Table]) -> float | None:
    """The largest size in several maps, so that they share a scale."""
    sizes = [abs(value) for table in tables for row in table for value in row if math.isfinite(value)]
    return max((size for size in sizes if size > 0), default=None)


def _height(one: HeadMap) -> int:
    return min(900, 120 + 30 * len(one.scores))


def _map(table: Table, marked: list[list[bool]], top: float | None, form: str) -> Figure:
    """One map, layer 0 below; marked heads wear a ring."""
    layers, heads = len(table), len(table[0]) if table else 0
    heat: Figure = {
        "type": "heatmap",
        "z": [plain(row) for row in table],
        "zmid": 0,
        "zmin": -top if top else None,
        "zmax": top,
        "colorscale": DIVERGING,
        "xgap": 2,
        "ygap": 2,
        "texttemplate": f"%{{z:{form}}}" if layers <= _MOST_ROWS and heads <= _MOST_COLUMNS else "",
        "hovertemplate": f"head %{{y}}:%{{x}}: %{{z:{form}}}<extra></extra>",
        "hoverongaps": False,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": form, "nticks": 5},
    }
    rings = [(head, layer) for layer, row in enumerate(marked) for head, inside in enumerate(row) if inside]
    ring: Figure = {
        "x": [head for head, _ in rings],
        "y": [layer + 0.32 for _, layer in rings],
        "mode": "markers",
        "marker": {"symbol": "circle", "size": 6, "color": INK},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return figure([heat, ring], xaxis=_ticks(heads, "head"), yaxis=_ticks(layers, "layer"))


def _ticks(count: int, name: str) -> Figure:
    step = 1 + (count - 1) // 24 if count else 1
    ticks = list(range(0, count, step))
    return {
        "tickvals": ticks,
        "ticktext": [str(tick) for tick in ticks],
        "range": [-0.5, max(count, 1) - 0.5],
        "showgrid": False,
        "title": title(name),
    }


def _retention(found: Circuits) -> Figure:
    """Retention over sizes: a line a fine-tune, the band of chance below and the ceiling above."""
    traces = _controls(max((one.sizes for one in found.kept), key=len))
    for position, one in enumerate(found.kept):
        line = {"color": turn(COLOURS, position), "width": 3}
        at = [cut.size for cut in one.sizes]
        traces.append(
            {
                "x": at,
                "y": plain(cut.retention for cut in one.sizes),
                "name": label(one.name),
                "legendgroup": f"run {position}",
                "mode": "lines+markers",
                "line": line,
                "marker": {"symbol": turn(SYMBOLS, position), "size": 8},
                "hovertemplate": "%{fullData.name}, %{x} heads: %{y:.0%}<extra></extra>",
            }
        )
        if any(math.isfinite(cut.at_halves) for cut in one.sizes):
            traces.append(
                {
                    "x": at,
                    "y": plain(cut.at_halves for cut in one.sizes),
                    "name": label(f"{one.name} on halves"),
                    "legendgroup": f"run {position}",
                    "mode": "lines",
                    "line": {**line, "width": 1, "dash": "dash"},
                    "hovertemplate": "%{fullData.name}, %{x} heads: %{y:.0%}<extra></extra>",
                }
            )
    share = {"title": title("share of the base's circuit kept"), "tickformat": ".0%", "range": [-0.03, 1.05]}
    return figure(traces, xaxis={"title": title("heads in both circuits")}, yaxis=share)


def _controls(sizes: list[AtSize]) -> list[Figure]:
    """Chance, its band, and the ceiling, which depend on the size and the base alone."""
    at = [one.size for one in sizes]

    def line(values: list[float], name: str, **own: object) -> Figure:
        return {
            "x": at,
            "y": plain(values),
            "name": name,
            "mode": "lines",
            "hovertemplate": f"{name}, %{{x}} heads: %{{y:.0%}}<extra></extra>",
            **own,
        }

    edge = {"line": {"width": 0}, "hoverinfo": "skip", "hovertemplate": None, "showlegend": False}
    return [
        line([one.chance.low for one in sizes], "", **edge),
        line(
            [one.chance.high for one in sizes],
            "95% of chance",
            line={"width": 0},
            fill="tonexty",
            fillcolor=BAND,
            hoverinfo="skip",
            hovertemplate=None,
        ),
        line([one.chance.mean for one in sizes], "chance", line={"color": MUTED, "width": 1, "dash": "dot"}),
        line(
            [one.ceiling for one in sizes],
            "ceiling: the base on halves",
            line={"color": MUTED, "width": 2, "dash": "dash"},
        ),
    ]


def vulnerable_plots(found: Circuits) -> list[Plot]:
    """For every two fine-tunes how many heads only one of them lost, over δ."""
    reading = (
        "The further right, the more a head must have lost; where the two lines lie as high, seed noise alone would "
        "explain them."
    )
    over = "" if found.prompts is None else f" n = {plural(found.prompts, 'prompt')}."
    return [
        Plot(story.vulnerable_finding(one), [_counts(one)], f"{reading}{over}", height=340)
        for one in found.differences
        if one.vulnerable
    ]


def _counts(found: Difference) -> Figure:
    at = [one.delta for one in found.vulnerable]
    lines = (
        (f"lost by {found.first} alone", [len(one.heads) for one in found.vulnerable], COLOURS[0], "circle", "solid"),
        (f"lost by {found.second} alone", [one.reverse for one in found.vulnerable], COLOURS[1], "square", "dash"),
    )
    traces = [
        {
            "x": plain(at),
            "y": counts,
            "name": label(name, 60),
            "mode": "lines+markers",
            "line": {"color": colour, "width": 3, "dash": dash},
            "marker": {"symbol": symbol, "size": 9},
            "hovertemplate": "δ = %{x:g}: %{y} heads %{fullData.name}<extra></extra>",
        }
        for name, counts, colour, symbol, dash in lines
    ]
    heads = {"title": title("heads"), "rangemode": "tozero", "tickformat": ",d"}
    return figure(traces, xaxis={"title": title("δ, the loss that counts (1: a head's whole mask)")}, yaxis=heads)


def _ways(ways: list[Way]) -> Figure:
    """Retention against reward along each fine-tune, the last checkpoint large."""
    traces = []
    for position, way in enumerate(ways):
        last = len(way.steps) - 1
        traces.append(
            {
                "x": plain(step.reward for step in way.steps),
                "y": plain(step.retention for step in way.steps),
                "name": label(way.name),
                "mode": "lines+markers",
                "line": {"color": turn(COLOURS, position), "width": 2},
                "marker": {
                    "opacity": 1,
                    "symbol": turn(SYMBOLS, position),
                    "size": [14 if i == last else 7 for i in range(len(way.steps))],
                },
                "text": [label(step.name) for step in way.steps],
                "hovertemplate": "%{fullData.name}, %{text}: reward %{x:.2f}, %{y:.0%} kept<extra></extra>",
            }
        )
    rewards = [step.reward for way in ways for step in way.steps]
    share = {"title": title("share of the base's circuit kept"), "tickformat": ".0%", "range": [-0.03, 1.05]}
    reward = {"title": title("reward on the task"), "range": span(rewards, start=0, end=1)}
    return figure(traces, xaxis=reward, yaxis=share)
