"""The codes of `score_bits`, and the counting of their leading bits, for numba kernels."""

from __future__ import annotations

import numpy as np

from rlforget_kernels.common import score_bits
from rlforget_kernels.common.cpu_math import INFINITY, MAGNITUDE, jit
from rlforget_kernels.common.rounding import NAN

LANES = 4
"""Histograms that are counted side by side, so that scores of one bin in a row do not wait for each other."""

_TRAILING_BITS = np.uint32(score_bits.TRAILING_BITS)
_NEGATIVE = np.uint32(score_bits.NEGATIVE)
_NAN = np.uint32(NAN)


@jit
def ordered(bits):
    """`score_bits.ordered` of the uint32 bits of one score: a uint32."""
    magnitude = np.uint32(bits & MAGNITUDE)
    negative = (bits > MAGNITUDE) & (magnitude > np.uint32(0))
    code = _NEGATIVE if negative else magnitude
    return _NAN if magnitude > INFINITY else code


@jit
def count_leading(bits, start, stop, bins, counts):
    """Add the scores of [start, stop), as uint32, to `counts`, int64 [LEADING_BINS, LANES].

    `bins` is scratch: uint16, of a length that is a multiple of LANES.
    """
    for block in range(np.uint64(start), np.uint64(stop), np.uint64(bins.size)):
        count = min(np.uint64(bins.size), np.uint64(stop) - block)
        for i in range(count):
            bins[i] = ordered(bits[block + i]) >> _TRAILING_BITS
        whole = count - count % np.uint64(LANES)
        for i in range(np.uint64(0), whole, np.uint64(LANES)):
            for lane in range(np.uint64(LANES)):
                counts[bins[i + lane], lane] += 1
        for i in range(whole, count):
            counts[bins[i], np.uint64(0)] += 1
