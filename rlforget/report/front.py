"""The picture of a search for a rollback: skill restored against skill kept, the front, and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlforget.report.drawing import COLOURS, CONTROL, GRID, INK, MUTED, save_drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rlforget.recovery import Search, Trial

_SIZE = (6.4, 4.8)  # inches
_FRONT = COLOURS[0]
_MARK = 5  # pixels from a mark's middle to its edge
_PLACES: tuple[tuple[tuple[float, float], Literal["left", "right", "center"]], ...] = (
    *(((7, up), "left") for up in (7, -7, 15, -15)),
    *(((-7, up), "right") for up in (7, -7, 15, -15)),
    *(((0, up), "center") for up in (11, -11, 22, -22)),
)
"""Where a name may stand beside its mark, in points, the best first."""


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
    for line in (axes.axvline, axes.axhline):
        line(1.0, color=GRID, linewidth=1, zorder=0)
    axes.set_xlabel(f"share of the loss regained: {', '.join(search.restore)}")
    axes.set_ylabel(f"share of the gain kept: {', '.join(search.protect)}")
    axes.margins(0.12)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    _name(axes, [chosen, *(one for one in (*front, *controls) if one is not chosen)], search.trials)


def _name(axes: Axes, trials: Sequence[Trial], marked: Sequence[Trial]) -> None:
    """Write the names of some trials, the first ones first, where none covers another or a mark.

    A name for which there is no such place is left out: the table has it.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # so that all is where it will be
    marks = [axes.transData.transform((one.regained.value, one.kept.value)) for one in marked]
    taken = [Bbox.from_extents(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks]
    frame = axes.get_window_extent()
    for number, trial in enumerate(trials):
        at = (trial.regained.value, trial.kept.value)
        for shift, side in _PLACES:
            text = axes.annotate(
                trial.candidate.label,
                at,
                xytext=shift,
                textcoords="offset points",
                fontsize=8,
                color=MUTED,
                fontweight="normal" if number else "bold",
                ha=side,
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            if frame.contains(*box.min) and frame.contains(*box.max) and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()


def _points(axes: Axes, trials: list[Trial], **style: Any) -> None:
    if trials:
        across, up = [trial.regained.stderr for trial in trials], [trial.kept.stderr for trial in trials]
        x, y = _shares(trials)
        axes.errorbar(x, y, xerr=across, yerr=up, linestyle="none", elinewidth=0.6, alpha=0.9, **style)


def _shares(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [trial.regained.value for trial in trials], [trial.kept.value for trial in trials]
