"""The Gram matrix block by block of samples, and which form serves a block; the same on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from torch import Tensor

SAMPLES = 1024
"""Samples of a block of the Gram matrix, of either side."""


S = TypeVar("S", bound="Side")


class Side(Protocol):
    """The positions of some samples that count."""

    @property
    def samples(self) -> int:
        """How many samples there are."""
        ...

    @property
    def total(self) -> int:
        """How many positions these samples have."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of the inputs and of the gradients."""
        ...

    def part(self: S, start: int, stop: int) -> S:
        """Return the samples from `start` to `stop`."""
        ...


def add_by_blocks(
    gram: Tensor,
    rows: S,
    columns: S | None,
    product: Callable[[tuple[S, ...]], Tensor],
) -> None:
    """Add to `gram` what `product` makes of blocks of samples.

    Args:
        gram: float64 [n, m], written in place.
        rows: The samples of its rows.
        columns: Those of its columns; None: the same.
        product: Returns the Gram matrix of one block, of which the lower half counts, or of two blocks.
    """
    for a in _blocks(rows):
        side = rows.part(a.start, a.stop)
        for b in _blocks(rows if columns is None else columns):
            if columns is not None:
                gram[a, b] += product((side, columns.part(b.start, b.stop)))
            elif b.start < a.start:
                crossed = product((side, rows.part(b.start, b.stop)))
                gram[a, b] += crossed
                gram[b, a] += crossed.T
            elif b.start == a.start:
                half = product((side,)).tril_()
                gram[a, a] += half + half.tril(-1).T


def _blocks(side: Side) -> Iterator[slice]:
    for start in range(0, side.samples, SAMPLES):
        yield slice(start, min(start + SAMPLES, side.samples))


def chosen_form(sides: tuple[Side, ...], form: str) -> str:
    """Return `form`, or what "auto" stands for: the form of fewer multiplications."""
    if form != "auto":
        return form
    return "pairwise" if pairwise_cost(sides) < explicit_cost(sides) else "explicit"


def pairwise_cost(sides: tuple[Side, ...]) -> int:
    """Multiplications of the pairwise form."""
    return sides[0].total * sides[-1].total * sum(sides[0].sizes) // (3 - len(sides))


def explicit_cost(sides: tuple[Side, ...]) -> int:
    """Multiplications of the explicit form."""
    fan_in, out = sides[0].sizes
    pairs = sides[0].samples * sides[-1].samples // (3 - len(sides))
    return (sum(side.total for side in sides) + pairs) * fan_in * out
