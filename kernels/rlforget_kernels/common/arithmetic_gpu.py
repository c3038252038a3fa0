"""The one NaN of `arithmetic` for Triton kernels, on blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from rlforget_kernels.common import arithmetic
from rlforget_kernels.common.gpu_math import INFINITY, MAGNITUDE, NAN

_MAGNITUDE64 = tl.constexpr(arithmetic.FLOAT64_MAGNITUDE)
_INFINITY64 = tl.constexpr(arithmetic.FLOAT64_INFINITY)
_NAN64 = tl.constexpr(arithmetic.FLOAT64_NAN)


@triton.jit
def result_bits(values):
    """The bits of float32 `values` as int32, a NaN as the one NaN."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where((bits & MAGNITUDE) > INFINITY, NAN, bits)


@triton.jit
def result_bits64(values):
    """The bits of float64 `values` as int64, a NaN as the one NaN."""
    bits = values.to(tl.int64, bitcast=True)
    return tl.where((bits & _MAGNITUDE64) > _INFINITY64, _NAN64, bits)
