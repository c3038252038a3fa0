"""Hashing and rounding for numba kernels: the functions of `hashing` and `rounding`, one value at a time.

Words are uint64 and float bits uint32 throughout. (numba makes float64 of a mix of uint64 and int64: convert first.)
"""

from __future__ import annotations

import numba
import numpy as np

from rlforget_kernels.common import hashing, rounding

GOLDEN = np.uint64(hashing.GOLDEN)
MAGNITUDE = np.uint32(rounding.MAGNITUDE)
INFINITY = np.uint32(rounding.INFINITY)
_MIX_1 = np.uint64(hashing.MIX_1)
_MIX_2 = np.uint64(hashing.MIX_2)
_33 = np.uint64(33)

# numba caches a kernel by its own file: touch the callers' files after a change here.
jit = numba.njit(nogil=True, cache=True)


@jit
def mix64(word):
    """`hashing.mix64` of one uint64."""
    word = (word ^ (word >> _33)) * _MIX_1
    word = (word ^ (word >> _33)) * _MIX_2
    return word ^ (word >> _33)


@jit
def random_word(mixed_seed, index):
    """`hashing.random_words` of coordinate `index` (uint64), given mix64(seed)."""
    return mix64(np.uint64(index) * GOLDEN + mixed_seed)


@jit
def float_of_bits(bits):
    """The float32 that the uint32 `bits` spell."""
    return np.uint32(bits).view(np.float32)


@jit
def bits_of_float(value):
    """The uint32 bits of the float32 `value`."""
    return np.float32(value).view(np.uint32)


@jit
def widen(code, exponent, mantissa):
    """The float32 value of `code`, a float of `exponent` and `mantissa` bits in the low bits of a uint32.

    float8_e4m3fn is told by its exponent of 4 bits: it has no infinity and its only NaN is all ones.
    """
    code = np.uint32(code)
    magnitude = code & np.uint32((1 << (exponent + mantissa)) - 1)
    sign = np.uint32(code >> np.uint32(exponent + mantissa)) << np.uint32(31)
    stored = magnitude >> np.uint32(mantissa)
    rebias = np.uint32(128 - (1 << (exponent - 1)))
    if stored == np.uint32(0) and exponent < 8:
        # A subnormal: an exact integer times a power of two that float32 holds as a normal number.
        unit = float_of_bits(np.uint32(rebias + np.uint32(1) - np.uint32(mantissa)) << np.uint32(23))
        bits = bits_of_float(np.float32(magnitude) * unit)
    else:
        bits = np.uint32(magnitude << np.uint32(23 - mantissa)) + np.uint32(rebias << np.uint32(23))
        largest = np.uint32((1 << exponent) - 1)
        if exponent == 4:
            if magnitude == np.uint32(0x7F):
                bits = np.uint32(rounding.NAN)
        elif exponent < 8 and stored == largest:
            bits = bits | INFINITY
    return float_of_bits(bits | sign)


@jit
def _significand_and_shift(magnitude, exponent_bits, mantissa_bits):
    """Split a float32 magnitude into the integer to be rounded and the number of low bits it loses (both uint64)."""
    rebias = np.uint64(128 - (1 << (exponent_bits - 1)))
    drop = np.uint64(23 - mantissa_bits)
    exponent = np.uint64(magnitude >> np.uint32(23))
    if rebias == np.uint64(0) or exponent > rebias:
        return np.uint64(magnitude) - (rebias << np.uint64(23)), drop
    significand = np.uint64(magnitude & np.uint32(0x7FFFFF))
    if exponent > np.uint64(0):
        significand |= np.uint64(0x800000)
    else:
        exponent = np.uint64(1)
    return significand, drop + np.uint64(1) + rebias - exponent


@jit
def _finish(value_bits, code, layout):
    """Add sign, overflow and NaN to a rounded magnitude."""
    exponent, mantissa, overflow, nan = layout
    if (value_bits & MAGNITUDE) > INFINITY:
        return np.uint32(nan)
    sign = np.uint32(value_bits >> np.uint32(31)) << np.uint32(exponent + mantissa)
    return np.uint32(min(code, np.uint64(overflow))) | sign


@jit
def round_nearest(value, layout):
    """`rounding.round_float32` of one float32 to nearest even: the code, in the low bits of a uint32.

    `layout` is the tuple (exponent, mantissa, overflow, nan) of a `rounding.FloatFormat`.
    """
    bits = bits_of_float(value)
    significand, shift = _significand_and_shift(bits & MAGNITUDE, layout[0], layout[1])
    shift = min(shift, np.uint64(31))
    half = (np.uint64(1) << shift) >> np.uint64(1)
    if half > np.uint64(0):
        significand += half - np.uint64(1) + ((significand >> shift) & np.uint64(1))
    return _finish(bits, significand >> shift, layout)


@jit
def round_stochastic(value, layout, noise):
    """`rounding.round_float32` of one float32 with the uint64 `noise` in [0, 2**32): the code, in a uint32."""
    bits = bits_of_float(value)
    significand, shift = _significand_and_shift(bits & MAGNITUDE, layout[0], layout[1])
    fixed = (significand << np.uint64(32)) >> min(shift, np.uint64(56))
    return _finish(bits, (fixed + noise) >> np.uint64(32), layout)
