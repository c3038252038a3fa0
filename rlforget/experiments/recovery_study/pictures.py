"""The study's pictures, drawn by matplotlib from its rows alone: the same rows, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.experiments.recovery_study.bars import MAIN
from rlforget.experiments.recovery_study.reading import by, mean_of, select
from rlforget.experiments.recovery_study.scene import Row
from rlforget.report.drawing import COLOURS, GRID, MARKERS, MUTED, drawn
from rlforget.weights.atomic import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CONTROLS = ("random", "magnitude", "random subspace", "along δ")
_STYLE: Any = {
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_LINES = {"sequence": "-", "token": "--"}
Draw = Callable[["Axes", list[Row]], bool]


def draw_pictures(rows: list[Row], folder: Path) -> dict[str, Path]:
    """Draw every picture that there are rows for.

    Returns:
        The files by the pictures' names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, panels in PICTURES.items():
        if _draw(panels, rows, folder / f"recovery-{name}.png"):
            written[name] = folder / f"recovery-{name}.png"
    return written


def _draw(panels: Sequence[Draw], rows: list[Row], path: Path) -> bool:
    told: list[bool] = []

    def fill(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        told.extend(panel(one, rows) for panel, one in zip(panels, axes, strict=True))

    image = drawn(fill, (4.6 * len(panels), 3.9), form="png", style=_STYLE)
    if all(told):
        with new_file(path, force=True) as file:
            file.write(image)
    return all(told)


def _stages(axes: Axes, rows: list[Row]) -> bool:
    """Reward of every domain along the sequence, and after one rollback: means over seeds, by GRPO."""
    found = select(rows, rule="stage", part="sequence", method="grpo", counts=True)
    rolled = select(rows, rule="dense subspace", part="sequence", method="grpo", passes=2)
    if not found or not rolled:
        return False
    steps = by(found, lambda row: row["steps"])
    rewards = [_mean_rewards(same) for same in steps.values()]
    after = _mean_rewards(rolled)
    names = [*(str(same[0]["later"]) for same in steps.values()), "rollback"]
    for place, domain in enumerate(after):
        style: dict[str, Any] = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6], "markersize": 5}
        values = [reward[domain] for reward in rewards]
        axes.plot(range(len(values)), values, linewidth=2, label=domain, **style)
        axes.plot([len(values) - 1, len(values)], [values[-1], after[domain]], ":", linewidth=2, **style)
    axes.axvspan(len(names) - 1.5, len(names) - 0.65, color="#eaf3fa", zorder=0)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylim=(0, 1.04), ylabel="sampled reward", title="Train one skill after another")
    axes.legend(loc="lower right")
    return True


def _mean_rewards(rows: list[Row]) -> dict[str, float]:
    several = [json.loads(row["rewards"]) for row in rows]
    return {name: sum(one[name] for one in several) / len(several) for name in several[0]}


def _rules(axes: Axes, rows: list[Row]) -> bool:
    """What every rule gives back against what it leaves, means over scenes; a line joins one score's budgets."""
    found = [row for row in rows if row["part"] in MAIN and row["regained"] is not None]
    shown = ("dense subspace", "few prompts", "subspace", "fisher", "two_fisher", *_CONTROLS)
    place = 0
    for rule in shown:
        groups = by(select(found, rule=rule), lambda row: (row["budget"], row["rows"], row["passes"]))
        if not groups:
            continue
        points = [(mean_of(s, "regained").mean, mean_of(s, "kept").mean) for _, s in sorted(groups.items(), key=str)]
        colour = MUTED if rule in _CONTROLS else COLOURS[place % 6]
        marker = MARKERS[place % 6]
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=1, markersize=5, label=rule)
        place += 1
    if place < 2:
        return False
    axes.set_ylim(min(0.8, axes.get_ylim()[0]), max(1.05, axes.get_ylim()[1]))  # a hundredth is no cliff
    axes.axhline(1, color=GRID, linewidth=0.8)
    axes.axvline(1, color=GRID, linewidth=0.8)
    axes.set(xlabel="share of the loss regained", ylabel="share of the gain kept", title="Undo: the main rules")
    axes.legend(loc="lower left")
    return True


def _damage(curvature: str) -> Draw:
    def draw(axes: Axes, rows: list[Row]) -> bool:
        found = [
            r
            for r in select(rows, rule=f"damage, {curvature}")
            if r["predicted"] and r["predicted"] > 0 and r["value"] and r["value"] > 0
        ]
        for place, (method, same) in enumerate(by(found, lambda row: row["method"]).items()):
            axes.scatter(
                [row["predicted"] for row in same],
                [row["value"] for row in same],
                s=10,
                alpha=0.6,
                color=COLOURS[place],
                label=method,
            )
        if not found:
            return False
        values = [row[side] for row in found for side in ("predicted", "value")]
        axes.plot([min(values), max(values)], [min(values), max(values)], color=GRID, linewidth=1)
        axes.set(xscale="log", yscale="log")
        axes.set(
            xlabel=f"predicted by {curvature}, nats", ylabel="measured rise of the loss, nats", title=f"By {curvature}"
        )
        axes.legend(loc="upper left")
        return True

    return draw


def _curve(axes: Axes, rows: list[Row]) -> bool:
    """Share of the loss regained against the number of directions."""
    for place, rule in enumerate(("curve, by share", "curve, by eigenvalue", "curve, random")):
        groups = by(select(rows, rule=rule), lambda row: row["n"])
        points = [(n, mean_of(same, "regained").mean) for n, same in sorted(groups.items())]
        if not points:
            return False
        colour = (COLOURS[0], COLOURS[1], MUTED)[place]
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=4, color=colour, label=rule.removeprefix("curve, ")
        )
    axes.set(xscale="log", xlabel="directions", ylabel="share of the loss regained", title="How few directions")
    axes.legend(loc="upper left")
    return True


def _sizes(axes: Axes, rows: list[Row]) -> bool:
    """Share regained against the number of prompts, for each size and kind of row, one pass."""
    groups = by(select(rows, rule="growth", passes=1, mu=None), lambda row: (row["size"], row["rows"]))
    if not groups:
        return False
    sizes = list(dict.fromkeys(size for size, _ in groups))
    for (size, kind), same in groups.items():
        points = [(n, mean_of(some, "regained").mean) for n, some in sorted(by(same, lambda row: row["n"]).items())]
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=4,
            color=COLOURS[sizes.index(size) % 6],
            linestyle=_LINES.get(kind, ":"),
            label=f"{size}, {kind}",
        )
    axes.set(xscale="log", xlabel="prompts a domain", ylabel="share of the loss regained", title="Growth with size")
    axes.legend(loc="lower right")
    return True


PICTURES: dict[str, tuple[Draw, ...]] = {
    "readme": (_stages, _rules),
    "stages": (_stages,),
    "rules": (_rules,),
    "damage": (_damage("ggn"), _damage("ggn at 3 points"), _damage("fisher")),
    "curve": (_curve,),
    "sizes": (_sizes,),
}
"""The pictures and their panels."""
