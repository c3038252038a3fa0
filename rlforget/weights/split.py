"""Work on checkpoints split among ranks: each takes a stretch of it, and the first puts together what they made.

Only inside `splitting`, where every rank calls the same. Elsewhere ranks work alone: a training that commits a delta
does so on its first rank, and no other would answer there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rlforget.weights import ranks

Value = TypeVar("Value")

_splitting: ContextVar[bool] = ContextVar("splitting", default=False)


@contextmanager
def splitting() -> Iterator[None]:
    """Split the work inside the block among the ranks, all of which enter it; a lone process does all of it."""
    token = _splitting.set(True)
    try:
        yield
    finally:
        _splitting.reset(token)


def parts() -> int:
    """Return how many parts there are: the ranks, inside `splitting`; else 1."""
    return ranks.world() if _splitting.get() else 1


def part() -> int:
    """Return the number of this process's part, from 0 on."""
    return ranks.rank() if _splitting.get() else 0


def from_parts(value: Value) -> list[Value]:
    """Return every part's `value`, in their order, on each of them."""
    return ranks.gathered(value) if parts() > 1 else [value]


def from_first(make: Callable[[], Value]) -> Value:
    """Let the first part make something, and return it on all of them; see `ranks.from_first`."""
    return ranks.from_first(make) if parts() > 1 else make()


def meet() -> None:
    """Wait until every part has come here."""
    if parts() > 1:
        ranks.wait()


def takes(number: int) -> bool:
    """Whether the piece of work of that number is this part's, where pieces are dealt in turns."""
    return number % parts() == part()


def stretch(sizes: Sequence[int]) -> slice:
    """Return which of some pieces of work, of such sizes, are this part's.

    The stretches of all parts follow one another and cover all pieces; each is as near to its share of the sum as whole
    pieces allow. There may be none for a part.
    """
    total, count = sum(sizes), parts()
    first, last, done = len(sizes), 0, 0
    for number, size in enumerate(sizes):
        # By its middle a piece belongs to the share that most of it lies in.
        owner = min((2 * done + size) * count // (2 * total), count - 1) if total else 0
        if owner == part():
            first, last = min(first, number), number + 1
        done += size
    return slice(first, max(first, last))
