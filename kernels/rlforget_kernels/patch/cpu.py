"""`patch_` with numba."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.threads import map_slices


def patch_(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.patch`."""
    bits = as_bits(weight)
    flat, where, expected, new = (tensor.numpy() for tensor in (bits, indices, expected_bits, new_bits))
    found = map_slices(lambda start, stop: _mismatches(flat, where[start:stop], expected[start:stop]), where.size)
    mismatches = sum(int(count) for _, count in found)
    if mismatches == 0:
        map_slices(lambda start, stop: _write(flat, where[start:stop], new[start:stop]), where.size)
        write_back(weight, bits)
    return torch.tensor(mismatches, dtype=torch.int64)


@numba.njit(nogil=True, cache=True)
def _mismatches(flat, where, expected):
    """Count the positions of `where` that are outside `flat` or hold other bits than expected."""
    count = 0
    numel = np.uint64(flat.size)
    for j in range(where.size):
        i = np.uint64(where[j])  # a negative index becomes a huge one
        if i >= numel or flat[i] != expected[j]:
            count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _write(flat, where, new):
    """Write `new` at the positions `where`, which are known to be inside."""
    for j in range(where.size):
        flat[np.uint64(where[j])] = new[j]
