"""Hashing and rounding for Triton kernels: the functions of `hashing` and `rounding`, on blocks.

Words are uint64 and float bits uint32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlforget_kernels.common import hashing, rounding

GOLDEN = tl.constexpr(hashing.GOLDEN)
MAGNITUDE = tl.constexpr(rounding.MAGNITUDE)
INFINITY = tl.constexpr(rounding.INFINITY)
NAN = tl.constexpr(rounding.NAN)
_MIX_1 = tl.constexpr(hashing.MIX_1)
_MIX_2 = tl.constexpr(hashing.MIX_2)


@triton.jit
def mix64(word):
    """`hashing.mix64` of a block of uint64."""
    word = (word ^ (word >> 33)) * _MIX_1
    word = (word ^ (word >> 33)) * _MIX_2
    return word ^ (word >> 33)


@triton.jit
def random_word(mixed_seed, index):
    """`hashing.random_words` of coordinates `index` (a block, uint64), given mix64(seed) as uint64."""
    return mix64(index * GOLDEN + mixed_seed)


@triton.jit
def widen(code, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """The float32 values of `code`, floats of EXPONENT and MANTISSA bits in the low bits of a block of uint32.

    float8_e4m3fn is told by its exponent of 4 bits: it has no infinity and its only NaN is all ones.
    """
    WIDTH: tl.constexpr = EXPONENT + MANTISSA
    REBIAS: tl.constexpr = 128 - (1 << (EXPONENT - 1))
    magnitude = code & ((1 << WIDTH) - 1)
    bits = (magnitude << (23 - MANTISSA)) + (REBIAS << 23)
    if EXPONENT < 8:
        stored = magnitude >> MANTISSA
        # A subnormal: an exact integer times a power of two that float32 holds as a normal number.
        UNIT: tl.constexpr = 2.0 ** (REBIAS + 1 - MANTISSA - 127)
        small = (magnitude.to(tl.float32) * UNIT).to(tl.uint32, bitcast=True)
        bits = tl.where(stored == 0, small, bits)
        if EXPONENT == 4:
            bits = tl.where(magnitude == 0x7F, NAN, bits)
        else:
            bits = tl.where(stored == (1 << EXPONENT) - 1, bits | INFINITY, bits)
    return (bits | ((code >> WIDTH) << 31)).to(tl.float32, bitcast=True)


@triton.jit
def _significand_and_shift(magnitude, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """Split float32 magnitudes into the integers to be rounded and the numbers of low bits they lose (uint32)."""
    REBIAS: tl.constexpr = 128 - (1 << (EXPONENT - 1))
    DROP: tl.constexpr = 23 - MANTISSA
    significand = magnitude - (REBIAS << 23)
    shift = tl.full(magnitude.shape, DROP, tl.uint32)
    if REBIAS > 0:
        exponent = magnitude >> 23
        whole = (magnitude & 0x7FFFFF) | tl.where(exponent > 0, 0x800000, 0).to(tl.uint32)
        subnormal = exponent <= REBIAS
        significand = tl.where(subnormal, whole, significand)
        shift = tl.where(subnormal, DROP + 1 + REBIAS - tl.maximum(exponent, 1), shift)
    return significand, shift


@triton.jit
def _finish(bits, code, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, OVERFLOW: tl.constexpr, NAN_CODE: tl.constexpr):
    """Add sign, overflow and NaN to rounded magnitudes."""
    code = tl.minimum(code, OVERFLOW) | ((bits >> 31) << (EXPONENT + MANTISSA))
    return tl.where((bits & MAGNITUDE) > INFINITY, NAN_CODE, code).to(tl.uint32)


@triton.jit
def round_nearest(
    values, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, OVERFLOW: tl.constexpr, NAN_CODE: tl.constexpr
):
    """`rounding.round_float32` of a float32 block to nearest even: the codes, in the low bits of uint32.

    The constants are those of a `rounding.FloatFormat`, in its order.
    """
    bits = values.to(tl.uint32, bitcast=True)
    significand, shift = _significand_and_shift(bits & MAGNITUDE, EXPONENT, MANTISSA)
    if MANTISSA < 23:
        shift = tl.minimum(shift, 31)
        one = tl.full(shift.shape, 1, tl.uint32)
        half = one << (shift - 1)
        significand += half - 1 + ((significand >> shift) & 1)
        significand = significand >> shift
    return _finish(bits, significand, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)


@triton.jit
def round_stochastic(
    values, noise, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, OVERFLOW: tl.constexpr, NAN_CODE: tl.constexpr
):
    """`rounding.round_float32` of a float32 block with `noise` (uint64 in [0, 2**32)): the codes, in uint32."""
    bits = values.to(tl.uint32, bitcast=True)
    significand, shift = _significand_and_shift(bits & MAGNITUDE, EXPONENT, MANTISSA)
    fixed = (significand.to(tl.uint64) << 32) >> tl.minimum(shift, 56).to(tl.uint64)
    code = ((fixed + noise) >> 32).to(tl.uint32)
    return _finish(bits, code, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)


@triton.jit
def round_drawn(
    values, noise, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, OVERFLOW: tl.constexpr, NAN_CODE: tl.constexpr
):
    """`rounding.round_drawn` of a float32 block with `noise` (uint64 in [0, 2**32)): the codes, in uint32."""
    drawn = round_stochastic(values, noise, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
    if EXPONENT != 4:
        beyond = (drawn & ((1 << (EXPONENT + MANTISSA)) - 1)) >= OVERFLOW
        drawn = tl.where(beyond, round_nearest(values, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE), drawn)
    return drawn
