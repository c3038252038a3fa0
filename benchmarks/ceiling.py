"""What the machine can do: passes over memory that do nothing else, and products that never leave registers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import clock
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS, tile_product
from rlforget_kernels.common.threads import map_slices

Kind = Literal["read", "read one", "copy"]
Pass = Callable[[], object]

_COPIES = 10

_DEPTH = 128
_COLUMNS = PANEL_BYTES // 4
_TILES = 1 << 12
"""Products that a thread adds up: for some milliseconds."""
_STARTS = 1 << 18
"""What `map_slices` hands to one thread."""


def passes(kind: Kind, moved: int, device: torch.device) -> list[Pass]:
    """Return passes over memory of `device`; the fastest of them is the ceiling.

    Args:
        kind: "read" reads both halves of the memory at once, as two inputs are read. "read one" reads all of it from
            its beginning, as one input is, or as "read" does. "copy" reads one half and writes the other, or writes
            back where it read. On a GPU all are the copy: it reaches what the memory can do.
        moved: Bytes read and written.
        device: Where the memory is.
    """
    words = max(moved // 16, 1)
    memory = torch.ones(2 * words, dtype=torch.int64, device=device)
    first, second = memory.split(words)
    if device.type == "cuda":
        return [lambda: second.copy_(first)]
    if kind == "copy":
        return [lambda: second.copy_(first), first.neg_]
    both = [lambda: _read(first.numpy(), second.numpy())]
    return both if kind == "read" else [lambda: _read_one(memory.numpy()), *both]


def copy_speed(device: torch.device, moved: int = 1 << 30) -> float:
    """Return the bytes a second, read and written, of the best of a few copies of `moved` bytes in all."""
    copy = passes("copy", moved, device)[0]
    return moved / min(clock.timed(copy, device) for _ in range(_COPIES))


def float_speed() -> float:
    """Return the float32 operations a second of all of torch's threads, a multiply-add counting as two.

    Each thread adds up one product of matrices that its first cache holds, sums in registers, by the instructions that
    every product in float32 of the kernels' package is made of. Instructions for bfloat16 are faster.
    """
    threads = torch.get_num_threads()
    start = time.perf_counter()
    map_slices(lambda start, stop: _multiply((stop - start) * _TILES // _STARTS), threads * _STARTS)
    return 2 * threads * _TILES * TILE_ROWS * _DEPTH * _COLUMNS / (time.perf_counter() - start)


def xor_all(words: npt.NDArray[np.int64]) -> None:
    """Read an array once, by all of torch's threads."""
    half = words.size // 2
    _read(words[:half], words[half : 2 * half])


def _read(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
    map_slices(lambda start, stop: _xor(first[start:stop], second[start:stop]), first.size)


def _read_one(words: npt.NDArray[np.int64]) -> None:
    map_slices(lambda start, stop: _xor_one(words[start:stop]), words.size)


@numba.njit(nogil=True, cache=True)
def _xor_one(words: npt.NDArray[np.int64]) -> int:
    total = np.int64(0)
    for i in range(words.size):
        total ^= words[i]
    return total


@numba.njit(nogil=True, cache=True)
def _xor(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    total = np.int64(0)
    for i in range(first.size):
        total ^= first[i] ^ second[i]
    return total


@numba.njit(nogil=True, cache=True)
def _multiply(times: int) -> None:
    a = np.ones(TILE_ROWS * _DEPTH, np.float32)
    b = np.ones(_DEPTH * _COLUMNS, np.float32)
    c = np.zeros(TILE_ROWS * _COLUMNS, np.float32)
    for _ in range(times):
        tile_product(a, 0, _DEPTH, 1, b, 0, c, 0, _DEPTH)
