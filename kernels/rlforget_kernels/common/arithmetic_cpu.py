"""The one NaN of `arithmetic` for numba kernels, as integer comparisons: compilers may fold those of floats."""

from __future__ import annotations

import numpy as np

from rlforget_kernels.common import arithmetic, rounding
from rlforget_kernels.common.cpu_math import INFINITY, MAGNITUDE, bits_of_float, jit

_NAN = np.uint32(rounding.NAN)
_MAGNITUDE64 = np.uint64(arithmetic.FLOAT64_MAGNITUDE)
_INFINITY64 = np.uint64(arithmetic.FLOAT64_INFINITY)
_NAN64 = np.uint64(arithmetic.FLOAT64_NAN)


@jit
def result_bits(value):
    """The uint32 bits of the float32 `value`, a NaN as the one NaN."""
    bits = bits_of_float(value)
    return _NAN if (bits & MAGNITUDE) > INFINITY else bits


@jit
def result_bits64(value):
    """The uint64 bits of the float64 `value`, a NaN as the one NaN."""
    bits = np.float64(value).view(np.uint64)
    return _NAN64 if (bits & _MAGNITUDE64) > _INFINITY64 else bits
