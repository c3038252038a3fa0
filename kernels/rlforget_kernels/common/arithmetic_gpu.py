"""How the arithmetic operators round their results, for Triton kernels, on blocks: the functions of `arithmetic`."""

from __future__ import annotations

import triton
import triton.language as tl

from rlforget_kernels.common import arithmetic
from rlforget_kernels.common.gpu_math import (
    INFINITY,
    MAGNITUDE,
    NAN,
    random_word,
    round_drawn,
    round_nearest,
)

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


@triton.jit
def narrowed_bits(
    values,
    index,  # int64, like `values`: their coordinates
    mixed_seed,  # int64: mix64 of the seed
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """`arithmetic.narrowed` of float32 `values`: the codes, uint32; with the random bits of `index` if STOCHASTIC."""
    if STOCHASTIC:
        noise = random_word(tl.cast(mixed_seed, tl.int64).to(tl.uint64), index.to(tl.uint64)) >> 32
        return round_drawn(values, noise, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
    return round_nearest(values, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
