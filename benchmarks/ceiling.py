"""What the machine's memory can do: passes over bytes that do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import clock
from rlforget_kernels.common.threads import map_slices

Pass = Callable[[], object]

_COPIES = 10


def passes(kind: Literal["read", "copy"], moved: int, device: torch.device) -> list[Pass]:
    """Return passes over memory of `device`; the fastest of them is the ceiling.

    Args:
        kind: "read" reads both halves of the memory, as two inputs are read. "copy" reads one half and writes the
            other, or writes back where it read. On a GPU both are the copy: it reaches what the memory can do.
        moved: Bytes read and written.
        device: Where the memory is.
    """
    words = max(moved // 16, 1)
    first, second = torch.ones(2 * words, dtype=torch.int64, device=device).split(words)
    if device.type == "cuda":
        return [lambda: second.copy_(first)]
    if kind == "copy":
        return [lambda: second.copy_(first), first.neg_]
    return [lambda: _read(first.numpy(), second.numpy())]


def copy_speed(device: torch.device, moved: int = 1 << 30) -> float:
    """Return the bytes a second, read and written, of the best of a few copies of `moved` bytes in all."""
    copy = passes("copy", moved, device)[0]
    return moved / min(clock.timed(copy, device) for _ in range(_COPIES))


def xor_all(words: npt.NDArray[np.int64]) -> None:
    """Read an array once, by all of torch's threads."""
    half = words.size // 2
    _read(words[:half], words[half : 2 * half])


def _read(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
    map_slices(lambda start, stop: _xor(first[start:stop], second[start:stop]), first.size)


@numba.njit(nogil=True, cache=True)
def _xor(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    total = np.int64(0)
    for i in range(first.size):
        total ^= first[i] ^ second[i]
    return total
