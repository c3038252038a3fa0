"""The picture of a damage: predicted against measured, along the way from before to after."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlforget.errors import OutputError, missing_extra
from rlforget.report.picture import _COLOURS, _DPI, _FORMATS, _GRID, _MUTED, _STYLE, _plain
from rlforget.weights.atomic import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rlforget.interference import Damage, DamageCurve

_PANEL = (4.2, 3.6)  # inches
_STEPS = 50


def check_picture(path: Path) -> None:
    """Hold that a picture can be drawn, before what it shows is measured.

    Raises:
        OutputError: `path` is no `.svg` or `.png`.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        fix = "Name it so."
        raise OutputError(str(path), expected=" or ".join(_FORMATS), found=path.suffix or "no suffix", fix=fix)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_extra("matplotlib", "report") from None


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
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    form = path.suffix.lower().removeprefix(".")
    with rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * len(damages), _PANEL[1]), layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(damages), squeeze=False)[0]
        for axes, (domain, pair) in zip(panels, damages.items(), strict=True):
            _draw(axes, domain, *pair)
        out = io.BytesIO()
        figure.savefig(out, format=form, dpi=_DPI, metadata={"Date": None} if form == "svg" else None)
    with new_file(path, force=force) as file:
        file.write(out.getvalue())


def _draw(axes: Axes, domain: str, predicted: Damage, measured: DamageCurve) -> None:
    t = [step / _STEPS for step in range(_STEPS + 1)]
    line = [predicted.at(share) for share in t]
    # A band of one standard error, as if it grew with t as the total does.
    error = [share * predicted.total_stderr for share in t]
    low, high = ([value + sign * width for value, width in zip(line, error, strict=True)] for sign in (-1, 1))
    axes.fill_between(t, low, high, color=_COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(t, line, color=_COLOURS[0], linewidth=2, label=f"predicted ({predicted.curvature})")
    axes.errorbar(
        measured.t, measured.rise, measured.rise_stderr, fmt="o", color=_COLOURS[1], capsize=3, label="measured"
    )
    kl = [one.mean for one in measured.kl]
    axes.plot(measured.t, kl, "D", color=_COLOURS[2], markersize=5, fillstyle="none", label="KL(earlier ‖ there)")
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_xlabel("t, from before (0) to now (1)")
    axes.set_ylabel("rise of −log π, nats a completion")
    axes.set_title(_plain(domain), loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
