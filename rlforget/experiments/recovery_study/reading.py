"""Reading a study's table: rows chosen by their columns, means with their spread, curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlforget.experiments.recovery_study.scene import Row

Key = tuple[Any, ...]
_LEAST_POWER = 0.05  # of n, below which a fitted law says nothing
SCENE = ("base", "method", "seed", "part", "earlier", "later")
"""The columns that tell scenes apart."""


@dataclass(frozen=True)
class Mean:
    """A number over scenes: what it was in each that has it."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean; NaN of nothing."""
        return statistics.fmean(self.values) if self.values else math.nan

    def __str__(self) -> str:
        if not self.values:
            return "not measured"
        spread = f" ± {statistics.stdev(self.values):.2f}" if len(self.values) > 1 else ""
        return f"{self.mean:.2f}{spread}"


def select(rows: Iterable[Row], /, **wanted: Any) -> list[Row]:
    """Return the rows whose columns have these values; a tuple or list allows several."""
    return [
        row
        for row in rows
        if all(
            row.get(name) in (value if isinstance(value, tuple | list) else (value,)) for name, value in wanted.items()
        )
    ]


def mean_of(rows: Iterable[Row], column: str) -> Mean:
    """Average a column over the rows that have it."""
    return Mean(tuple(float(row[column]) for row in rows if row.get(column) is not None))


def shares(rows: Sequence[Row]) -> str:
    """Write what was regained and kept, and in how many scenes: `0.97 ± 0.02 / 0.98 ± 0.01 (n = 36)`."""
    if not rows:
        return "not measured"
    return f"{mean_of(rows, 'regained')} / {mean_of(rows, 'kept')} (n = {len(rows)})"


def pooled(rows: Sequence[Row]) -> str:
    """Write the shares of all losses and all gains added up over the scenes, which small losses bear on little."""
    told = []
    for start, end, after in (("now", "then", "after"), ("later_then", "later_now", "later_after")):
        known = [row for row in rows if row[after] is not None]
        whole = sum(row[end] - row[start] for row in known)
        told.append(f"{sum(row[after] - row[start] for row in known) / whole:.2f}" if whole else "not measured")
    return " / ".join(told)


def scene_of(row: Row) -> Key:
    """Return what tells a row's scene apart."""
    return tuple(row.get(name) for name in SCENE)


def by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Group rows, in the order in which the groups come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation; NaN of fewer than three pairs."""
    if len(pairs) < 3:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)


def first_to(rows: Sequence[Row], share: float) -> Row | None:
    """Return the row of the fewest steps at which this share of the loss is regained; None where it never is."""
    reached = [row for row in rows if (row["regained"] or 0.0) >= share]
    return min(reached, key=lambda row: int(row["steps"]), default=None)


def law_of_growth(rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """Fit what is not regained, 1 − r = c · n^(−a) · N^b, by least squares of its logarithm over rows of several sizes.

    A share above 0.98, or below 0, counts as 0.98 or 0: what is left is then within the noise of the rewards.

    Returns:
        a, b and the n at which a model of a million parameters regains 0.9; None where fewer than four rows have a
        share, where they are all of one size or one n, or where more prompts do not help by any power to speak of.
    """
    known = [row for row in rows if row["regained"] is not None]
    sizes = [math.log(float(str(row["size"]).removesuffix("M"))) for row in known]
    counts = [math.log(row["n"]) for row in known]
    if len(known) < 4 or len(set(sizes)) < 2 or len(set(counts)) < 2:
        return None
    import torch

    factors = torch.tensor([[1.0, -n, size] for n, size in zip(counts, sizes, strict=True)], dtype=torch.float64)
    left = torch.tensor([[math.log(1.0 - min(max(row["regained"], 0.0), 0.98))] for row in known], dtype=torch.float64)
    c, a, b = torch.linalg.lstsq(factors, left).solution.flatten().tolist()
    return (a, b, math.exp((c - math.log(0.1)) / a)) if a > _LEAST_POWER else None
