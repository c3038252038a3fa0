"""Skill restored against skill kept: which rollbacks no other one beats, and which of those to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Point = tuple[float, float]
"""The shares regained and kept."""


def front(points: Sequence[Point]) -> list[int]:
    """Return the positions of the points that no other point equals on one share and beats on the other, or beats."""

    def beats(one: Point, other: Point) -> bool:
        return one != other and one[0] >= other[0] and one[1] >= other[1]

    return [at for at, point in enumerate(points) if not any(beats(other, point) for other in points)]


def missing(point: Point) -> float:
    """Return what is missing to all regained and all kept. More than all counts as all."""
    return sum(max(0.0, 1.0 - share) for share in point)


def knee(points: Sequence[Point], noise: Callable[[int, int], float]) -> int:
    """Return the position of the point to take: the nearest to all regained and all kept, but for the noise.

    Nearest is by the sum of the two shares that are missing. Of the points that are as near as the nearest one, but for
    the noise, the first one is taken: so they come in the order in which they are preferred. A point that another one
    exceeds on both shares is never taken, whatever the noise.

    Args:
        points: One or more.
        noise: The standard error of the difference between what two points, given by position, are missing.
    """
    least = min(map(missing, points))
    nearest = next(at for at in front(points) if missing(points[at]) == least)

    def exceeded(point: Point) -> bool:
        return any(other[0] > point[0] and other[1] > point[1] for other in points)

    for at, point in enumerate(points):
        if not exceeded(point) and (at == nearest or missing(point) <= least + noise(at, nearest)):
            return at
    raise AssertionError("the nearest is exceeded by none")
