"""Scratch memory that is kept from call to call: on a fresh page the first write costs several times what others do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SIZE = 48 << 20
"""Bytes that an operator may borrow. Only what it writes to takes memory."""

_free: list[npt.NDArray[np.uint8]] = []


@contextlib.contextmanager
def borrowed() -> Iterator[npt.NDArray[np.uint8]]:
    """Lend `SIZE` bytes of any content. Two threads at once get two blocks; one of them is kept for the next call."""
    try:
        block = _free.pop()
    except IndexError:
        block = np.empty(SIZE, np.uint8)
    try:
        yield block
    finally:
        if not _free:
            _free.append(block)


def own(name: str, count: int) -> npt.NDArray[np.float32]:
    """Lend the calling thread `count` float32 of any content, from the start of a cache line.

    They are its own until it asks for the name again, and kept from call to call: some megabytes in all.
    """
    held: dict[str, npt.NDArray[np.float32]] = _of_thread.__dict__
    if name not in held or held[name].size < count:
        held[name] = torch.empty(count).numpy()
    return held[name][:count]


_of_thread = threading.local()


def columns(memory: npt.NDArray[np.uint8], dtypes: Sequence[np.dtype[Any]], most: int) -> list[npt.NDArray[Any]]:
    """Cut memory into one array of each dtype, all of one length: what fits, or `most`."""
    length = min(memory.size // sum(dtype.itemsize for dtype in dtypes), -(-most // 8) * 8) // 8 * 8
    found, start = [], 0
    for dtype in dtypes:  # np.split would take as long as all else that a small tensor costs
        stop = start + length * dtype.itemsize
        found.append(memory[start:stop].view(dtype))
        start = stop
    return found
