"""`patch_` with numba: a block is checked and then written, and put back if a later one is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.memory_cpu import prefetch
from rlforget_kernels.common.threads import map_pieces

_BLOCK = 256  # positions that are checked, then written
_AHEAD = 256  # positions from those that are looked at to those that are fetched
_COST = 16  # elements in order that a position takes as long as
_SPARSE = 16  # elements a position from which on the processor does not see by itself what is next


def foreach_patch_(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    expected_bits: Sequence[Tensor],
    new_bits: Sequence[Tensor],
) -> Tensor:
    """See `rlforget_kernels.patch`."""
    held = [as_bits(weight) for weight in weights]
    flat, where, expected, new = ([bits.numpy() for bits in bits] for bits in (held, indices, expected_bits, new_bits))
    sizes = [places.size for places in where]

    def write(position: int, start: int, stop: int) -> int:
        inside = slice(start, stop)
        lists = (where[position][inside], expected[position][inside], new[position][inside])
        return int(_write_checked(flat[position], *lists))

    def count(position: int, start: int, stop: int) -> int:
        inside = slice(start, stop)
        return int(_mismatches(flat[position], where[position][inside], expected[position][inside]))

    mismatches = np.zeros(len(flat), np.int64)
    written = map_pieces(write, sizes, cost=_COST)
    if any(done < stop - start for (_, start, stop), done in written):
        for (position, start, _), done in reversed(written):
            inside = slice(start, start + done)
            _write(flat[position], where[position][inside][::-1], expected[position][inside][::-1])
        for (position, *_), found in map_pieces(count, sizes, cost=_COST):
            mismatches[position] += found
        if not mismatches.any():  # an index twice, whose first new bits are not what was expected of the second
            for one in zip(flat, where, new, strict=True):
                _write(*one)
    if not mismatches.any():
        for weight, bits in zip(weights, held, strict=True):
            write_back(weight, bits)
    return torch.from_numpy(mismatches)


@jit
def _write_checked(flat, where, expected, new):
    """Write block after block until one has a mismatch; return how many positions are written."""
    first, count = np.uint64(0), np.uint64(where.size)
    sparse = flat.size // _SPARSE > where.size
    while first < count:
        stop = min(first + np.uint64(_BLOCK), count)
        if sparse:
            for j in range(min(first + np.uint64(_AHEAD), count), min(stop + np.uint64(_AHEAD), count)):
                prefetch(flat, np.int64(where[j]))
        if _mismatches(flat, where[first:stop], expected[first:stop]) > 0:
            break
        for j in range(first, stop):
            flat[np.uint64(where[j])] = new[j]
        first = stop
    return np.int64(first)


@jit
def _mismatches(flat, where, expected):
    """Count the positions of `where` that are outside `flat` or hold other bits than expected.

    Without a branch on what was loaded, so that the processor fetches many positions at once.
    """
    count, numel = np.int64(0), np.uint64(flat.size)
    if flat.size == 0:
        return np.int64(where.size)
    for j in range(np.uint64(where.size)):
        i = np.uint64(where[j])  # a negative index becomes a huge one
        outside = i >= numel
        found = flat[np.uint64(0) if outside else i]
        count += outside | (found != expected[j])
    return count


@jit
def _write(flat, where, bits):
    """Write at the positions `where`, which are known to be inside."""
    for j in range(np.uint64(where.size)):
        flat[np.uint64(where[j])] = bits[j]
