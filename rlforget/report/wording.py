"""How numbers and lists are written in sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"  # where there is no number


def number(value: float, digits: int = 2) -> str:
    """Write a number with a fixed number of decimals, and a true minus sign."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign."""
    text = number(value, digits)
    return f"+{text}" if math.isfinite(value) and value > 0 else text


def percent(share: float, digits: int = 0) -> str:
    """Write a share of 1 as a percentage; with more decimals, up to two, where those keep it from rounding to 100%."""
    fine = (number(100 * share, more) for more in range(digits, max(digits, 2) + 1))
    text = next((one for one in fine if share >= 1 or not one.startswith("100")), number(100 * share, digits))
    return text if text == NONE else f"{text}%"


def tenths(share: float) -> str:
    """Write a share of 1 as a percentage with one decimal."""
    return percent(share, 1)


def fraction(share: float | None) -> str:
    """Write a chosen fraction of the coordinates with as many digits as it has: `2%`, `0.5%`; None is `all`."""
    return "all" if share is None else f"{100 * share:.3g}%"


def listing(items: Sequence[str]) -> str:
    """Write a list: `a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def moved(before: float, after: float) -> str:
    """Write how a number went: `fell from 0.99 to 0.88`."""
    old, new = number(before), number(after)
    if old == new:
        return f"stayed at {new}"
    return f"{'rose' if after > before else 'fell'} from {old} to {new}"


def plural(count: int, thing: str) -> str:
    """Write a count and its thing: `1 seed`, `3 seeds`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
