"""Numba loops on several threads: pieces of one or many loops, run by kernels that release the interpreter lock.

Threads of our own and not numba's: its threading layers abort the process when two Python threads call in at once, or
after a fork. They are kept from call to call, and off the caller's core: a system starts or wakes a thread beside
whoever does it, on the same core, and moves it only milliseconds later. Which piece runs where decides nothing: every
kernel writes per coordinate, or per piece.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

I = TypeVar("I")
T = TypeVar("T")
Piece = tuple[int, int, int]

GRAIN = 1 << 18
"""Elements a thread takes at least: a start costs some 30 µs, and a core passes over these in about 100 µs."""


def map_slices(work: Callable[[int, int], T], count: int, multiple: int = 1) -> list[tuple[int, T]]:
    """Call work(start, stop) for slices that cover range(count), as many as torch has threads at most, all at once.

    Args:
        work: Must be safe to run beside itself.
        count: Length of the loop; 0 calls nothing.
        multiple: Every start is a multiple of it.

    Returns:
        (start, what `work` returned) of each slice, in ascending order.
    """
    found = map_pieces(lambda _, start, stop: work(start, stop), [count], multiple)
    return [(start, result) for (_, start, _), result in found]


def map_pieces(
    work: Callable[[int, int, int], T], sizes: Sequence[int], multiple: int = 1, cost: int = 1
) -> list[tuple[Piece, T]]:
    """Call work(position, start, stop) for pieces that cover range(sizes[position]) for every position.

    Many loops cost one start of threads: each thread takes a run of pieces of about as many elements as the others.

    Args:
        work: Must be safe to run beside itself.
        sizes: Lengths of the loops; 0 calls nothing.
        multiple: Every start is a multiple of it.
        cost: How many elements that lie in order one of them takes as long as.

    Returns:
        ((position, start, stop), what `work` returned) of each piece, in ascending order.
    """

    def run(pieces: list[Piece]) -> list[tuple[Piece, T]]:
        return [(piece, work(*piece)) for piece in pieces]

    return [result for found in in_order(run, runs(sizes, multiple, cost=cost)) for result in found]


def runs(sizes: Sequence[int], multiple: int, most: int | None = None, cost: int = 1) -> list[list[Piece]]:
    """Cut loops of these lengths into as many runs of pieces as torch has threads, or fewer where they are short.

    Args:
        sizes: Lengths of the loops.
        multiple: Every start is a multiple of it.
        most: How many runs there may be, where each of them takes memory.
        cost: See `map_pieces`.
    """
    total, threads = sum(sizes), torch.get_num_threads()
    parts = min(threads, most or threads, _divided_up(total * cost, GRAIN))
    if parts == 1:
        return [[(position, 0, size) for position, size in enumerate(sizes) if size]]
    cut: list[list[Piece]] = [[] for _ in range(parts)]
    ends = [_divided_up((part + 1) * total, parts) for part in range(parts)]
    part = before = 0  # elements of the loops before this one
    for position, size in enumerate(sizes):
        start = 0
        while start < size:
            while before + start >= ends[part]:
                part += 1
            # The first element that belongs to the next part, moved up to where a piece may start.
            stop = min(_divided_up(ends[part] - before, multiple) * multiple, size)
            cut[part].append((position, start, stop))
            start = stop
        before += size
    return [pieces for pieces in cut if pieces]


def _divided_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def in_order(work: Callable[[I], T], items: Sequence[I]) -> Iterator[T]:
    """Yield work(item) of every item in their order, computed by as many threads as torch has.

    For parts that are added up: which thread has which item changes no sum, and parts do not pile up. The caller's
    thread is one of them, so work may come back here from inside.

    Args:
        work: Must be safe to run beside itself.
        items: What there is to do, in parts of about equal length.
    """
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2:
        yield from map(work, items)
        return
    held = [(work, items)]  # by the threads only as long as they work: a caller may close what it mapped after that

    def run(position: int) -> T:
        work, items = held[0]
        return work(items[position])

    pool = _pool(torch.get_num_threads() - 1)
    if not _callers:  # several would push the helpers to and fro
        _keep_apart()
    waiting = {position: pool.submit(run, position) for position in range(1, len(items))}
    unlooked = iter(range(1, len(items)))
    _callers.append(threading.get_native_id())
    try:
        here = {0: run(0)}
        for position in range(len(items)):
            while position not in here and not waiting[position].done():
                taken = next((other for other in unlooked if other in waiting and waiting[other].cancel()), None)
                if taken is None:
                    break
                here[taken] = run(taken)
            yield here.pop(position) if position in here else waiting[position].result()
            waiting.pop(position, None)
    finally:
        wait([future for future in waiting.values() if not future.cancel()])
        held.clear()
        _callers.pop()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads that help the callers' own, started when they are first needed."""
    return ThreadPoolExecutor(workers, initializer=_join)


def _join() -> None:
    """Have this thread kept apart from the next call on."""
    _helpers.append(threading.get_native_id())
    _cores.clear()


def _keep_apart() -> None:
    """Have our threads run on other cores than the caller does now, of those that it may use."""
    if _core is None or threading.get_native_id() in _helpers:
        return
    with contextlib.suppress(OSError):  # a thread has ended, or the system forbids it
        others = os.sched_getaffinity(0) - {_core()}
        if others and _cores.get("helpers") != others:
            _cores["helpers"] = others
            for thread in tuple(_helpers):
                os.sched_setaffinity(thread, others)


def _forget() -> None:
    """Drop what a child process does not have of its parent."""
    _pool.cache_clear()
    _helpers.clear()
    _callers.clear()
    _cores.clear()


_helpers: list[int] = []  # what the system calls our threads
_callers: list[int] = []  # threads that wait for ours
_cores: dict[str, set[int]] = {}  # where ours may run
_core: Callable[[], int] | None = None
if hasattr(os, "sched_setaffinity"):
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
