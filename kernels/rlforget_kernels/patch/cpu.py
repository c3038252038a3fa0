"""`patch_` with numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.threads import map_pieces


def foreach_patch_(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    expected_bits: Sequence[Tensor],
    new_bits: Sequence[Tensor],
) -> Tensor:
    """See `rlforget_kernels.patch`."""
    held = [as_bits(weight) for weight in weights]
    flat, where, expected, new = ([bits.numpy() for bits in bits] for bits in (held, indices, expected_bits, new_bits))

    def check(position: int, start: int, stop: int) -> int:
        inside = slice(start, stop)
        return int(_mismatches(flat[position], where[position][inside], expected[position][inside]))

    def write(position: int, start: int, stop: int) -> None:
        inside = slice(start, stop)
        _write(flat[position], where[position][inside], new[position][inside])

    sizes = [places.size for places in where]
    mismatches = np.zeros(len(flat), np.int64)
    for (position, *_), count in map_pieces(check, sizes):
        mismatches[position] += count
    if not mismatches.any():
        map_pieces(write, sizes)
        for weight, bits in zip(weights, held, strict=True):
            write_back(weight, bits)
    return torch.from_numpy(mismatches)


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
def _write(flat, where, new):
    """Write `new` at the positions `where`, which are known to be inside."""
    for j in range(np.uint64(where.size)):
        flat[np.uint64(where[j])] = new[j]
