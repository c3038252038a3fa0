"""The picture of a search for a rollback: skill restored against skill kept, the front, and the controls."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.errors import OutputError, missing_extra
from rlforget.weights.atomic import check_free, new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rlforget.recovery import Search, Trial

_FORMATS = (".svg", ".png")
_INK, _MUTED, _GRID, _FRONT = "#1a1f24", "#5f676f", "#dfe4e8", "#0089d9"
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "svg.hashsalt": "rlforget",  # the same picture, the same bytes
}


def check_picture(path: Path, *, force: bool) -> None:
    """Hold that a picture can be written there.

    Raises:
        OutputError: It is no `.svg` or `.png`, or exists already.
    """
    if path.suffix.lower() not in _FORMATS:
        found = path.suffix or "no suffix"
        raise OutputError(str(path), expected=" or ".join(_FORMATS), found=found, fix="Name it so.")
    check_free(path, force=force)


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
    check_picture(path, force=force)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    form, out = path.suffix.lower().removeprefix("."), io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained", facecolor="white")
        _draw(figure.subplots(), search)
        figure.savefig(out, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
    with new_file(path, force=force) as file:
        file.write(out.getvalue())


def _draw(axes: Axes, search: Search) -> None:
    controls = [trial for trial in search.trials if trial.candidate.control]
    beaten = [trial for trial in search.trials if trial not in controls and trial not in search.front]
    _points(axes, beaten, color=_MUTED, marker="o", markersize=4, label="tried")
    _points(axes, controls, color="#aab3bb", marker="x", markersize=5, label="controls")
    front = sorted(search.front, key=lambda trial: (trial.regained.value, -trial.kept.value))
    _points(axes, front, color=_FRONT, marker="o", markersize=6, label="front")
    axes.step(*_shares(front), where="post", color=_FRONT, linewidth=1, alpha=0.5)
    chosen = search.chosen
    axes.plot(*_shares([chosen]), "o", markersize=13, markerfacecolor="none", color=_INK, label="taken")
    text: Any = {"textcoords": "offset points", "fontsize": 8}
    for trial in [*front, *(one for one in (chosen, *controls) if one not in front)]:
        at = (trial.regained.value, trial.kept.value)
        weight = "bold" if trial is chosen else "normal"
        axes.annotate(trial.candidate.label, at, xytext=(7, -3), color=_MUTED, fontweight=weight, **text)
    for line in (axes.axvline, axes.axhline):
        line(1.0, color=_GRID, linewidth=1, zorder=0)
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
