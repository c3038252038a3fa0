"""The weight map: where each stage changed the weights."""

from __future__ import annotations

import math

from rlforget.report import story
from rlforget.report.figure import HEAT, Figure, Plot, label
from rlforget.report.over_seeds import DeltaOverSeeds, OverSeeds, PlaceOverSeeds
from rlforget.report.plots.grid import Grid
from rlforget.report.results import Place
from rlforget.report.wording import number, plural

PLACE_CHOICES = ("norm of the change", "root mean square of the change", "share of coordinates changed")
"""What a reader may switch the maps between."""

_SHOWN = (("norm", ".2f"), ("per_coordinate", ".1e"), ("share", ".1%"))  # of a place, in that order, and how written
_MOST_TENSORS = 3  # named when one points at a cell
_LONGEST_NAME = 72


def place_plots(found: OverSeeds) -> list[Plot]:
    """The weight map of every stage, layer by module; the views are `PLACE_CHOICES`, each on one scale for all."""
    stages = [(stage.name, stage.delta) for stage in found.stages if stage.delta and stage.delta.places]
    grid = Grid.of(list(dict.fromkeys(place for _, delta in stages for place in delta.places)))
    tops = [_top([delta for _, delta in stages], key) for key, _ in _SHOWN]
    reading = f"A row a layer, a column a module; the bar beside it says how much a colour is. {story.counted(found)}"
    return [
        Plot(
            story.delta_finding(name, delta),
            [_map(delta, grid, key, form, top) for (key, form), top in zip(_SHOWN, tops, strict=True)],
            reading,
            height=grid.height,
        )
        for name, delta in stages
    ]


def _top(deltas: list[DeltaOverSeeds], key: str) -> float | None:
    """The highest value of all maps, so that they share a scale."""
    means = [getattr(at, key).mean for delta in deltas for at in delta.places.values()]
    return max((mean for mean in means if math.isfinite(mean) and mean > 0), default=None)


def _map(delta: DeltaOverSeeds, grid: Grid, key: str, form: str, top: float | None) -> Figure:
    def mean(place: Place) -> float:
        return float(getattr(delta.places[place], key).mean) if place in delta.places else math.nan

    lines = {place: _lines(change) for place, change in delta.places.items()}
    scale = {"zmin": 0, "zmax": top, "colorscale": HEAT}
    return grid.figure(mean, lines, form, scale)


def _lines(place: PlaceOverSeeds) -> list[str]:
    """The tensors of a place, each with how much of it changed."""
    said = [
        f"{label(one.name, _LONGEST_NAME)}: {number(one.changed.mean, 0)} of {one.numel:,} changed"
        for one in place.tensors[:_MOST_TENSORS]
    ]
    more = len(place.tensors) - _MOST_TENSORS
    return [*said, f"and {plural(more, 'other tensor')}"] if more > 0 else said
