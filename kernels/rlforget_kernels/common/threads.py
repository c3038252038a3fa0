"""Numba loops on several threads: slices of one loop, run by kernels that release the interpreter lock.

Threads of our own and not numba's: its threading layers abort the process when two Python threads call in at once, or
after a fork. Which slice runs where decides nothing: every kernel writes per coordinate, or per slice.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

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
    parts = min(torch.get_num_threads(), -(-count // GRAIN))
    if parts == 0:
        return []
    step = -(-count // (parts * multiple)) * multiple
    starts = range(0, count, step)
    stops = [min(start + step, count) for start in starts]
    if len(starts) == 1:
        return [(0, work(0, count))]
    with ThreadPoolExecutor(len(starts)) as pool:
        return list(zip(starts, pool.map(work, starts, stops), strict=True))
