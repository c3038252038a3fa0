"""`select_top`'s passes with numba."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import INFINITY, jit
from rlforget_kernels.common.rounding import NAN
from rlforget_kernels.common.threads import map_slices

_NEGATIVE_ZERO = np.uint32(0x80000000)
_NAN = np.uint32(NAN)
_NEGATIVE = np.uint32(0x7FFF0000)
_16 = np.uint32(16)
_LOW = np.uint32(0xFFFF)


def score_histogram(score: Tensor, prefix: int = -1) -> Tensor:
    """See `rlforget_kernels.select_top`."""
    bits = as_bits(score).numpy().view(np.uint32)
    bins = 1 << (15 if prefix < 0 else 16)

    def work(start: int, stop: int) -> np.ndarray:
        part = np.zeros(bins, dtype=np.int64)
        if prefix < 0:
            _count_high(bits[start:stop], part)
        else:
            _count_low(bits[start:stop], np.uint32(prefix), part)
        return part

    histogram = np.zeros(bins, dtype=np.int64)
    for _, part in map_slices(work, bits.size):
        histogram += part
    return torch.from_numpy(histogram)


def indices_from(score: Tensor, bits: int, ties: int) -> tuple[Tensor, int]:
    """See `rlforget_kernels.select_top`."""
    codes = as_bits(score).numpy().view(np.uint32)
    least = np.uint32(bits)
    counts = map_slices(lambda start, stop: _count_from(codes[start:stop], least), codes.size)
    starts, above, equal = np.array([(start, *pair) for start, pair in counts], dtype=np.int64).reshape(-1, 3).T
    # Ties go to the slices in order, as far as there are any left.
    before = np.minimum(equal.cumsum() - equal, ties)
    taken = np.minimum(equal.cumsum(), ties) - before
    ends = (above + taken).cumsum()
    indices = np.empty(ends[-1] if len(ends) else 0, dtype=np.int64)
    places = dict(zip(starts.tolist(), zip((ends - above - taken).tolist(), taken.tolist(), strict=True), strict=True))

    def write(start: int, stop: int) -> None:
        place, ties_here = places[start]
        _write_from(codes[start:stop], least, ties_here, start, indices[place:])

    map_slices(write, codes.size)
    return torch.from_numpy(indices), int(taken.sum())


@jit
def _ordered(bits):
    """The bits of a score, with −0.0 as 0, NaN as the one NaN, and what is negative above everything."""
    if bits > INFINITY:
        if bits == _NEGATIVE_ZERO:
            return np.uint32(0)
        return _NAN if (bits & np.uint32(0x7FFFFFFF)) > INFINITY else _NEGATIVE
    return bits


@jit
def _count_high(bits, histogram):
    """Count the bins of 2**16 codes."""
    for i in range(np.uint64(bits.size)):
        histogram[_ordered(bits[i]) >> _16] += 1


@jit
def _count_low(bits, prefix, histogram):
    """Count the codes inside one bin."""
    for i in range(np.uint64(bits.size)):
        code = _ordered(bits[i])
        if code >> _16 == prefix:
            histogram[code & _LOW] += 1


@jit
def _count_from(bits, least):
    """How many codes are above `least`, and how many equal it."""
    above, equal = 0, 0
    for i in range(np.uint64(bits.size)):
        code = _ordered(bits[i])
        above += code > least
        equal += code == least
    return above, equal


@jit
def _write_from(bits, least, ties, start, indices):
    """Write the positions, from `start` on, of the codes above `least` and of the first `ties` that equal it."""
    place = np.uint64(0)
    for i in range(np.uint64(bits.size)):
        code = _ordered(bits[i])
        if code > least or (code == least and ties > 0):
            ties -= code == least
            indices[place] = np.int64(i) + start
            place += np.uint64(1)
