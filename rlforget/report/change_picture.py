"""The picture of a change: where in the model it lies, and how far its coordinates moved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.delta.naming import layer_of, module_of
from rlforget.report.drawing import COLOURS, GRID, plain, save_drawing
from rlforget.report.plots.grid import Grid
from rlforget.report.plots.steps import bin_start
from rlforget.report.wording import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlforget.delta import Change, DeltaStats
    from rlforget.report.results import Place

_COLUMN, _ROW = 0.42, 0.26  # inches, of a cell
_BESIDE, _AROUND = 4.2, 1.9  # inches: the histogram, and what labels take
_LOWEST, _HIGHEST = 3.6, 14.0
_MOST_NAMES = 40  # layers that are all named


def save_change_picture(stats: DeltaStats, path: Path, *, name: str = "", force: bool = False) -> None:
    """Draw the share of coordinates changed by layer and module, and the steps between representable values.

    Args:
        stats: What `Delta.stats`, `measure_diff` or `write_diff` returned.
        path: The picture to write, `.svg` or `.png`.
        name: What was compared, for the title.
        force: Replace what is there.

    Raises:
        OutputError: `path` is no `.svg` or `.png`, exists already, or cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    places: dict[Place, list[Change]] = {}
    for tensor, change in stats.tensors.items():
        places.setdefault((layer_of(tensor), module_of(tensor)), []).append(change)
    grid = Grid.of(list(places))
    width = _BESIDE + _AROUND + _COLUMN * max(6, len(grid.columns))
    height = min(_HIGHEST, max(_LOWEST, _AROUND + _ROW * len(grid.rows)))

    def draw(figure: Figure) -> None:
        where, steps = figure.subplots(1, 2, width_ratios=(width - _BESIDE, _BESIDE))
        _draw_places(figure, where, grid, places)
        _draw_steps(steps, stats.total)
        figure.suptitle(_title(stats, name), x=0.01, ha="left", fontsize=11, fontweight="bold")

    save_drawing(draw, (width, height), path, force=force)


def _title(stats: DeltaStats, name: str) -> str:
    total = stats.total
    share = percent(1 - total.sparsity, 2)
    said = f"{share} of {total.numel:,} coordinates changed, by a norm of {number(total.l2, 3)}"
    return f"{plain(name)}: {said}" if name else said


def _draw_places(figure: Figure, axes: Axes, grid: Grid, places: dict[Place, list[Change]]) -> None:
    if not grid.rows:
        axes.set_axis_off()
        return
    shares = [[_share(places.get((layer, module), [])) for module in grid.columns] for layer in grid.rows]
    image = axes.imshow(shares, aspect="auto", origin="lower", cmap="Blues", vmin=0.0, interpolation="nearest")
    names = ["elsewhere" if layer is None else str(layer) for layer in grid.rows]
    every = 1 + len(names) // _MOST_NAMES
    axes.set_xticks(range(len(grid.columns)), [plain(module) for module in grid.columns], rotation=45, ha="right")
    axes.set_yticks(range(0, len(names), every), names[::every])
    axes.set_ylabel("layer")
    axes.tick_params(length=0, labelsize=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="share of coordinates changed")
    bar.ax.tick_params(length=0, labelsize=8)
    bar.outline.set_visible(False)


def _draw_steps(axes: Axes, total: Change) -> None:
    """A bar a bin, up to the last that is not empty."""
    last = max((place for place, count in enumerate(total.steps) if count), default=0)
    shares = [count / total.changed if total.changed else 0.0 for count in total.steps[: last + 1]]
    axes.bar(range(len(shares)), shares, width=0.8, color=COLOURS[0])
    every = max(1, math.ceil(len(shares) / 7))
    style: dict[str, Any] = {"rotation": 45, "ha": "right"}
    axes.set_xticks(range(0, len(shares), every), [bin_start(place) for place in range(0, len(shares), every)], **style)
    axes.set_xlabel(f"steps between values of {', '.join(total.dtypes) or 'the storage dtype'}, at least")
    axes.set_ylabel("share of the changed coordinates")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)


def _share(changes: list[Change]) -> float:
    """The share of coordinates changed; NaN, which is left white, where there are none."""
    numel = sum(change.numel for change in changes)
    return sum(change.changed for change in changes) / numel if numel else math.nan
