"""One number, measured once a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlforget.report.wording import number


@dataclass(frozen=True)
class Spread:
    """One number over the seeds; NaN for a seed that does not have it."""

    values: tuple[float, ...]

    @property
    def known(self) -> list[float]:
        """The values that are finite numbers."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """The mean over the seeds that have it; NaN where none has."""
        return sum(self.known) / len(self.known) if self.known else math.nan

    def text(self, write: Callable[[float], str] = number, between: str = " ") -> str:
        """Write the mean and, over several seeds, the lowest and the highest value: `0.97 (0.95 to 0.98)`."""
        ends = list(dict.fromkeys(write(end) for end in (min(self.known), max(self.known)))) if self.known else []
        return f"{write(self.mean)}{between}({' to '.join(ends)})" if len(ends) > 1 else write(self.mean)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Gather the values of the seeds, None where a seed has none."""
        return cls(tuple(math.nan if value is None else value for value in values))
