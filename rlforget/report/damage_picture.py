"""The picture of a damage: predicted against measured, along the way from before to after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlforget.report.drawing import COLOURS, GRID, MUTED, plain, save_drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlforget.interference import Damage, DamageCurve

_PANEL = (4.2, 3.6)  # inches
_STEPS = 50


def save_damage_picture(damages: Mapping[str, tuple[Damage, DamageCurve]], path: Path, *, force: bool = False) -> None:
    """Draw a panel a domain: the predicted rise of its loss as a line, the measured one and KL as points.

    Args:
        damages: By domain, the prediction and the measurement.
        path: The picture to write, `.svg` or `.png`.
        force: Replace what is there.

    Raises:
        OutputError: `path` is no `.svg` or `.png`, exists already, or cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    size = (_PANEL[0] * len(damages), _PANEL[1])
    save_drawing(lambda figure: _draw_panels(figure, damages), size, path, force=force)


def _draw_panels(figure: Figure, damages: Mapping[str, tuple[Damage, DamageCurve]]) -> None:
    panels = figure.subplots(1, len(damages), squeeze=False)[0]
    for axes, (domain, pair) in zip(panels, damages.items(), strict=True):
        _draw(axes, domain, *pair)


def _draw(axes: Axes, domain: str, predicted: Damage, measured: DamageCurve) -> None:
    t = [step / _STEPS for step in range(_STEPS + 1)]
    line = [predicted.at(share) for share in t]
    # A band of one standard error, as if it grew with t as the total does.
    error = [share * predicted.total_stderr for share in t]
    low, high = ([value + sign * width for value, width in zip(line, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(t, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(t, line, color=COLOURS[0], linewidth=2, label=f"predicted ({predicted.curvature})")
    axes.errorbar(
        measured.t, measured.rise, measured.rise_stderr, fmt="o", color=COLOURS[1], capsize=3, label="measured"
    )
    kl = [one.mean for one in measured.kl]
    axes.plot(measured.t, kl, "D", color=COLOURS[2], markersize=5, fillstyle="none", label="KL(earlier ‖ there)")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_xlabel("t, from before (0) to now (1)")
    axes.set_ylabel("rise of −log π, nats a completion")
    axes.set_title(plain(domain), loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
