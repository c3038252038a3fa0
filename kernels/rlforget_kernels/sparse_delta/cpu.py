"""`sparse_delta` with numba: every thread compacts a slice in place, then the slices slide together."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, index_dtype
from rlforget_kernels.common.threads import map_slices

_BLOCK = 64  # elements compared at a time: one or a few vector registers, and most blocks have no change


def sparse_delta(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.sparse_delta`."""
    old, new = (as_bits(tensor).numpy() for tensor in (before, after))
    numel, unsigned = old.size, f"u{old.itemsize}"
    # Room for every coordinate: pages that are never written to take no memory, and shrinking gives the rest back.
    indices = np.empty(numel, "i4" if index_dtype(numel) == torch.int32 else "i8")
    bits_before, bits_after = np.empty(numel, old.dtype), np.empty(numel, old.dtype)
    views = [bits.view(unsigned) for bits in (old, new, bits_before, bits_after)]

    def compact(start: int, stop: int) -> int:
        return int(_compact(*views, indices, start, stop))

    end = 0
    for start, count in map_slices(compact, numel, multiple=_BLOCK):
        if start != end:
            for output in (indices, bits_before, bits_after):
                output[end : end + count] = output[start : start + count]
        end += count
    views.clear()
    return _shrink(indices, end), _shrink(bits_before, end), _shrink(bits_after, end)


def _shrink(array: npt.NDArray[Any], length: int) -> Tensor:
    """Cut `array` to its first `length` elements without a copy."""
    array.resize(length, refcheck=False)
    return torch.from_numpy(array)


@numba.njit(nogil=True, cache=True)
def _compact(old, new, bits_before, bits_after, indices, start, stop):
    """Write the changed coordinates of [start, stop) at positions `start` onwards; return how many there are."""
    out = np.uint64(start)
    block = np.uint64(start)
    end = np.uint64(stop)
    while block < end:
        block_end = min(block + np.uint64(_BLOCK), end)
        difference = old[block] ^ new[block]
        for i in range(block, block_end):
            difference |= old[i] ^ new[i]
        if difference:
            # Branch-free: write always, advance where changed. `out` never passes `i`, so it stays in the slice.
            for i in range(block, block_end):
                indices[out] = i
                bits_before[out] = old[i]
                bits_after[out] = new[i]
                out += np.uint64(old[i] != new[i])
        block = block_end
    return out - np.uint64(start)
