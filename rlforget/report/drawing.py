"""What every matplotlib picture shares: its looks, where it may be written, and its bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.errors import OutputError, missing_extra
from rlforget.report.figure import printable
from rlforget.weights.atomic import check_free, new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, CONTROL = "#1a1f24", "#5f676f", "#dfe4e8", "#aab3bb"
COLOURS = ("#0089d9", "#d67100", "#08723f", "#ae3593", "#6d6a19", "#323898")
"""Those of the page, in light."""
MARKERS = ("o", "s", "D", "^", "v", "P")

_DPI = 200
_FORMATS = (".svg", ".png")
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.hashsalt": "rlforget",  # the same picture, the same bytes
}


def check_drawing() -> None:
    """Hold that pictures can be drawn, before what they show is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise missing_extra("matplotlib", "report") from None


def check_picture(path: Path, *, force: bool) -> None:
    """Hold that a picture can be drawn and written, before what it shows is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: `path` is no `.svg` or `.png`, or exists already and `force` is not given.
    """
    if path.suffix.lower() not in _FORMATS:
        found = path.suffix or "no suffix"
        raise OutputError(str(path), expected=" or ".join(_FORMATS), found=found, fix="Give it that ending.")
    check_free(path, force=force)
    check_drawing()


def drawn(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    *,
    form: str = "svg",
    style: Mapping[str, Any] | None = None,
) -> bytes:
    """Draw a picture on white.

    Args:
        draw: Fills the figure.
        size: Width and height, inches.
        form: `svg` or `png`.
        style: What the picture has of its own, as matplotlib's rcParams.

    Returns:
        The image: the same bytes for the same drawing.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    out = io.BytesIO()
    settings: Any = {**_STYLE, **(style or {})}
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(out, format=form, dpi=_DPI, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def save_drawing(draw: Callable[[Figure], None], size: tuple[float, float], path: Path, *, force: bool) -> None:
    """Draw a picture, and write it at `path`, whole or not at all.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: `path` is no `.svg` or `.png`, exists already, or cannot be written.
    """
    check_picture(path, force=force)
    image = drawn(draw, size, form=path.suffix.lower().removeprefix("."))
    with new_file(path, force=force) as file:
        file.write(image)


def plain(name: str) -> str:
    """Return a name as matplotlib shows it: `$` would begin a formula, a leading `_` would hide a legend's entry."""
    text = printable(name)[:24].replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
