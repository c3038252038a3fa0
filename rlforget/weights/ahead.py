"""Work done ahead of its reader: on threads, with results in order and a bound on how many wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

I = TypeVar("I")
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Told how much of long work is done, and of how much, as it goes on: `progress(done, total)`."""


def map_ahead(work: Callable[[I], T], items: Iterable[I]) -> Generator[T, None, None]:
    """Yield work(item) for each item, in order, while threads are at the next ones.

    As many threads as torch has, and as many results waiting beyond those being worked on, so that memory is bounded.
    An exception in `work` reaches the reader in its turn. A reader that stops early, or closes this, stops
    the threads and waits until they have. A single item is worked on by the reader's own thread.

    Args:
        work: Must be safe to run beside itself.
        items: Read by the calling thread.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:
        yield from map(work, first)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[T]] = deque()
    try:
        for item in chain(first, rest):
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
