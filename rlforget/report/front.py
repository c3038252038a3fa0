"""The picture of a search for a rollback: skill restored against skill kept, the front, and the controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.report.drawing import COLOURS, CONTROL, GRID, INK, MUTED, save_drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rlforget.recovery import Search, Trial

_SIZE = (6.4, 4.8)  # inches
_FRONT = COLOURS[0]


def save_front(search: Search, path: Path, *, force: bool = False) -> None:
    """Draw every candidate of a search by its two shares on validation prompts, with their standard errors.

    Args:
        search: What `rf.auto_rollback` found.
        path: The picture to write, `.svg` or `.png`.
        force: Replace what is there.

    Raises:
        OutputError: `path` is no `.svg` or `.png`, exists already, or cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    save_drawing(lambda figure: _draw(figure.subplots(), search), _SIZE, path, force=force)


def _draw(axes: Axes, search: Search) -> None:
    controls = [trial for trial in search.trials if trial.candidate.control]
    beaten = [trial for trial in search.trials if trial not in controls and trial not in search.front]
    _points(axes, beaten, color=MUTED, marker="o", markersize=4, label="tried")
    _points(axes, controls, color=CONTROL, marker="x", markersize=5, label="controls")
    front = sorted(search.front, key=lambda trial: (trial.regained.value, -trial.kept.value))
    _points(axes, front, color=_FRONT, marker="o", markersize=6, label="front")
    axes.step(*_shares(front), where="post", color=_FRONT, linewidth=1, alpha=0.5)
    chosen = search.chosen
    axes.plot(*_shares([chosen]), "o", markersize=13, markerfacecolor="none", color=INK, label="taken")
    text: Any = {"textcoords": "offset points", "fontsize": 8}
    for trial in [*front, *(one for one in (chosen, *controls) if one not in front)]:
        at = (trial.regained.value, trial.kept.value)
        weight = "bold" if trial is chosen else "normal"
        axes.annotate(trial.candidate.label, at, xytext=(7, -3), color=MUTED, fontweight=weight, **text)
    for line in (axes.axvline, axes.axhline):
        line(1.0, color=GRID, linewidth=1, zorder=0)
    axes.set_xlabel(f"share of the loss regained: {', '.join(search.restore)}")
    axes.set_ylabel(f"share of the gain kept: {', '.join(search.protect)}")
    axes.margins(0.12)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


def _points(axes: Axes, trials: list[Trial], **style: Any) -> None:
    if trials:
        across, up = [trial.regained.stderr for trial in trials], [trial.kept.stderr for trial in trials]
        x, y = _shares(trials)
        axes.errorbar(x, y, xerr=across, yerr=up, linestyle="none", elinewidth=0.6, alpha=0.9, **style)


def _shares(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [trial.regained.value for trial in trials], [trial.kept.value for trial in trials]
