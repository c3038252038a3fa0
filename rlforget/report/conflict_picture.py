"""The pictures of a conflict: one for each part that `rlforget conflict` measures, drawn from its tidy table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlforget.report.drawing import COLOURS, CONTROL, GRID, MUTED, drawn, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

_SIZE = (6.4, 3.8)  # inches
_MOST_BARS = 24


def draw(part: str, rows: Rows) -> bytes:
    """Draw a part.

    Args:
        part: One of `set`, `routes`, `synergy`, `gradients`, `geometry`, `subspace`, `kronecker`.
        rows: Its tidy table, as `rlforget conflict --out` saves it.

    Returns:
        An SVG image: the same bytes for the same rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        axes.tick_params(length=0, labelsize=8)
        _DRAWN[part](axes, rows)

    return drawn(fill, _SIZE)


def _set(axes: Axes, rows: Rows) -> None:
    _stack(axes, [(str(row["layer"]), row["kind"], row["picked"]) for row in rows], "coordinates in the conflict set")


def _kronecker(axes: Axes, rows: Rows) -> None:
    cells = [("outside" if row["layer"] is None else str(row["layer"]), row["kind"], row["share"]) for row in rows]
    _stack(axes, cells, "share of the damage")


def _stack(axes: Axes, cells: list[tuple[str, str, float]], label: str) -> None:
    """Draw a bar a layer, its kinds on top of one another."""
    layers = list(dict.fromkeys(layer for layer, _, _ in cells))
    below = [0.0] * len(layers)
    for number, kind in enumerate(dict.fromkeys(kind for _, kind, _ in cells)):
        heights = [sum(v for where, k, v in cells if (where, k) == (layer, kind)) for layer in layers]
        axes.bar(layers, heights, bottom=below, width=0.7, color=COLOURS[number % len(COLOURS)], label=kind)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    _finish(axes, "y")


def _routes(axes: Axes, rows: Rows) -> None:
    labels = [plain(f"{row['first']}, {row['second']}: {row['part']}") for row in rows]
    places = range(len(rows))
    axes.barh(places, [row["overlap"] for row in rows], height=0.6, color=COLOURS[0], label="overlap")
    chance = [row["by_chance"] for row in rows]
    axes.plot(chance, places, "|", color="black", markersize=11, label="by chance")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("Jaccard index; mean squared cosine for input directions")
    _finish(axes, "x")


def _synergy(axes: Axes, rows: Rows) -> None:
    told = sorted((row for row in rows if row["cosine_on_route"] is not None), key=lambda row: row["cosine_on_route"])
    kept = _ends(told)
    _points(axes, kept, {"on the shared route": "cosine_on_route", "everywhere": "cosine"})
    axes.set_xlabel("cosine of the two updates")


def _gradients(axes: Axes, rows: Rows) -> None:
    kept = _ends(sorted(rows, key=lambda row: row["cosine"]))
    _points(axes, kept, {"between the domains": "cosine"})
    axes.set_xlabel("cosine of the two gradients")


def _ends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    half = _MOST_BARS // 2
    return rows if len(rows) <= _MOST_BARS else rows[:half] + rows[-half:]


def _points(axes: Axes, rows: Rows, series: dict[str, str]) -> None:
    """Draw a row a module, a point a series."""
    places = range(len(rows))
    for number, (label, key) in enumerate(series.items()):
        colour = COLOURS[0] if number == 0 else CONTROL
        axes.plot([row[key] for row in rows], places, "o", color=colour, markersize=4, label=label, zorder=3 - number)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(places, [plain(_short(row["module"])) for row in rows], fontsize=6)
    _finish(axes, "x")


def _short(name: str) -> str:
    """Keep of a module's name what tells it apart from the others: its layer's number and what follows."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), max(0, len(parts) - 2))
    return " ".join([parts[number], ".".join(parts[number + 1 :])])


def _geometry(axes: Axes, rows: Rows) -> None:
    """Draw the turn of each matrix against that of the shuffled update."""
    known = [row for row in rows if row["turn_largest"] > 0 and row["turn_by_chance_largest"] > 0]
    across, up = [row["turn_by_chance_largest"] for row in known], [row["turn_largest"] for row in known]
    axes.plot(across, up, "o", color=COLOURS[0], markersize=4)
    if known:
        ends = [min(across + up), max(across + up)]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=":", label="as by chance")
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("turn of the leading subspaces by the shuffled update, rad")
    axes.set_ylabel("by the update, rad")
    _finish(axes, "both")


def _subspace(axes: Axes, rows: Rows) -> None:
    """Draw the share of the damage undone against the number of directions."""
    labels = {"by_share": "those that carry most", "by_eigenvalue": "of the largest eigenvalues", "random": "random"}
    for number, (curve, label) in enumerate(labels.items()):
        points = [row for row in rows if row["curve"] == curve]
        colour = CONTROL if curve == "random" else COLOURS[number]
        directions = [row["directions"] for row in points]
        axes.plot(directions, [row["explained"] for row in points], "o-", color=colour, markersize=4, label=label)
    if rows:
        axes.set_xscale("log", base=2)
    axes.set_xlabel("directions")
    axes.set_ylabel("share of the damage undone (linear)")
    _finish(axes, "y")


def _finish(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


_DRAWN: dict[str, Callable[[Axes, Rows], None]] = {
    "set": _set,
    "routes": _routes,
    "synergy": _synergy,
    "gradients": _gradients,
    "geometry": _geometry,
    "subspace": _subspace,
    "kronecker": _kronecker,
}
