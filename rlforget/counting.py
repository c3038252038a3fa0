"""How far long work is, for whoever listens: loops are counted where they run, and shown where there is a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

_Item = TypeVar("_Item")

Listener = Callable[[str, int, int], None]
"""Told of a loop what it counts, in the plural, how many are behind, and of how many."""


class _Hearing:
    """A listener, and whether a loop is being counted: loops inside that one are not told of."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.busy = listener, False


_hearing: ContextVar[_Hearing | None] = ContextVar("hearing", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every counted loop inside the block that stands in no other one."""
    token = _hearing.set(_Hearing(listener))
    try:
        yield
    finally:
        _hearing.reset(token)


def telling(what: str) -> Callable[[int, int], None] | None:
    """Return what is to be told how many are done, and of how many, by a loop that counts for itself; None: nobody.

    Args:
        what: What is counted, in the plural.
    """
    hearing = _hearing.get()
    return None if hearing is None or hearing.busy else partial(hearing.listener, what)


def counted(
    what: str, items: Iterable[_Item], total: int | None = None, *, size: Callable[[_Item], int] | None = None
) -> Iterable[_Item]:
    """Yield the items, and tell whoever listens how many are behind.

    Args:
        what: What is counted, in the plural, e.g. `completions`.
        items: The items.
        total: What they come to; None: their number, where they have one.
        size: What an item counts; None: 1.
    """
    hearing = _hearing.get()
    if total is None and isinstance(items, Sized):
        total = len(items) if size is None else sum(map(size, items))
    if hearing is None or hearing.busy or total is None:
        return items
    return _told(hearing, what, items, total, size or (lambda _: 1))


def _told(
    hearing: _Hearing, what: str, items: Iterable[_Item], total: int, size: Callable[[_Item], int]
) -> Iterator[_Item]:
    hearing.busy = True
    done = 0
    try:
        hearing.listener(what, done, total)
        for item in items:
            yield item
            done += size(item)
            hearing.listener(what, done, total)
    finally:  # also where the loop is left early
        hearing.busy = False
