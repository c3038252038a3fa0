"""The weight map: where each stage changed the weights."""

from __future__ import annotations

import math

from rlforget.report import story
from rlforget.report.figure import HEAT, Figure, Plot, figure, label, plain
from rlforget.report.over_seeds import DeltaOverSeeds, OverSeeds
from rlforget.report.results import Place

PLACE_CHOICES = ("norm of the change", "root mean square of the change", "share of coordinates changed")
"""What a reader may switch the maps between."""

_SHOWN = (("norm", ".2f"), ("per_coordinate", ".1e"), ("share", ".1%"))  # of a place, in that order, and how written
_KINDS = ("attention", "mlp", "norm", "embedding", "other")  # the order of the columns
_MOST_ROWS = 40  # with numbers in the cells


def place_plots(found: OverSeeds) -> list[Plot]:
    """The weight map of every stage: layer by kind; the views are `PLACE_CHOICES`, each on one scale for all stages."""
    stages = [(stage.name, stage.delta) for stage in found.stages if stage.delta and stage.delta.places]
    places = list(dict.fromkeys(place for _, delta in stages for place in delta.places))
    rows = sorted({layer for layer, _ in places}, key=lambda layer: (layer is not None, -(layer or 0)))
    kinds = {kind for _, kind in places}
    columns = [kind for kind in _KINDS if kind in kinds] + sorted(kinds - {*_KINDS})
    tops = [_top([delta for _, delta in stages], key) for key, _ in _SHOWN]
    return [
        Plot(
            story.delta_finding(name, delta),
            [_map(delta, rows, columns, key, form, top) for (key, form), top in zip(_SHOWN, tops, strict=True)],
            height=min(900, 110 + 38 * len(rows)),
        )
        for name, delta in stages
    ]


def _top(deltas: list[DeltaOverSeeds], key: str) -> float | None:
    """The highest value of all maps, so that they share a scale."""
    means = [getattr(at, key).mean for delta in deltas for at in delta.places.values()]
    return max((mean for mean in means if math.isfinite(mean) and mean > 0), default=None)


def _map(
    delta: DeltaOverSeeds, rows: list[int | None], columns: list[str], key: str, form: str, top: float | None
) -> Figure:
    """One map; its rows go from below to above, as plotly counts them."""

    def mean(place: Place) -> float:
        return float(getattr(delta.places[place], key).mean) if place in delta.places else math.nan

    trace = {
        "type": "heatmap",
        "z": [plain(mean((layer, kind)) for kind in columns) for layer in rows],
        "zmin": 0,
        "zmax": top,
        "colorscale": HEAT,
        "xgap": 2,
        "ygap": 2,
        "texttemplate": f"%{{z:{form}}}" if len(rows) <= _MOST_ROWS else "",
        "hovertemplate": f"%{{y}}, %{{x}}: %{{z:{form}}}<extra></extra>",
        "hoverongaps": False,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": form, "nticks": 5},
    }
    names = ["elsewhere" if layer is None else f"layer {layer}" for layer in rows]
    return figure([trace], xaxis=_ticks([label(kind) for kind in columns]), yaxis=_ticks(names))


def _ticks(names: list[str]) -> Figure:
    return {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
