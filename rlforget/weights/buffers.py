"""Memory for ranges that pass by: used again as soon as the tensor in it is gone.

Fresh memory of some megabytes comes from the system each time, page by page and cleared. On a pass over a model that
costs more than reading the files does.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_KEPT = 256 << 20  # bytes that wait to be used again, at most
_SMALLEST = 1 << 16  # bytes; below, the allocator has its own lists

Block = npt.NDArray[np.uint8]

_free: defaultdict[int, list[Block]] = defaultdict(list)
_kept = 0
_lock = RLock()  # a collection of garbage may release a block while one is taken


def buffer(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised 1-D tensor on the CPU. Safe to call from several threads.

    Args:
        count: Its length.
        dtype: Its dtype.
    """
    size = count * dtype.itemsize
    if size < _SMALLEST:
        return torch.empty(count, dtype=dtype)
    view = _block(1 << (size - 1).bit_length())[:size]
    # torch holds on to the view for as long as any tensor lies in it.
    weakref.finalize(view, _release, view.base).atexit = False
    return torch.from_numpy(view).view(dtype)


def _block(size: int) -> Block:
    global _kept
    with _lock:
        if _free[size]:
            _kept -= size
            return _free[size].pop()
    return np.empty(size, np.uint8)


def _release(block: Any) -> None:
    global _kept
    with _lock:
        if _kept + block.size <= _KEPT:
            _kept += block.size
            _free[block.size].append(block)
