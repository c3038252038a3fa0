"""A fixed time shared out among many points: where it is short, every test leaves out the same part of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

_FIRST_GUESS = 0.3
"""Seconds a point."""


class Pace:
    """Chooses which points are tried, by how long the ones before took.

    Args:
        seconds: The time for all points.
        points: How many there are, about.
    """

    def __init__(self, seconds: float, points: float) -> None:
        self._end = time.monotonic() + seconds
        self._left = points
        self._tried = self._spent = 0.0

    def of(self, points: int, *, cost: float = 1, least: float = 0) -> Iterator[int]:
        """Yield those of `range(points)` that there is time for, one at least, evenly spread.

        Args:
            points: How many there are.
            cost: How many points of the total each stands for.
            least: The share of them that is tried whatever time it takes.
        """
        rate = self._spent / self._tried if self._tried else _FIRST_GUESS
        share = (self._end - time.monotonic()) / (rate * max(self._left, points * cost))
        self._left -= points * cost
        count = min(points, max(1, round(points * max(share, least))))
        for number in range(count):
            start = time.monotonic()
            yield number * points // count
            self._spent += time.monotonic() - start
            self._tried += cost
