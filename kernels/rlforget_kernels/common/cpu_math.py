"""Hashing and rounding for numba kernels: the functions of `hashing` and `rounding`, one value at a time.

Words are uint64 and float bits uint32 throughout. (numba makes float64 of a mix of uint64 and int64, and uint64 of two
uint32: convert around every operation.) Nothing branches, so that a loop over them becomes vector instructions where
the float format is known when it is compiled: see `specialized`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from rlforget_kernels.common import hashing, rounding
from rlforget_kernels.common.disk_cache import watch_shared_sources

GOLDEN = np.uint64(hashing.GOLDEN)
MAGNITUDE = np.uint32(rounding.MAGNITUDE)
INFINITY = np.uint32(rounding.INFINITY)
_MIX_1 = np.uint64(hashing.MIX_1)
_MIX_2 = np.uint64(hashing.MIX_2)
_33 = np.uint64(33)


def jit(function: Callable[..., Any]) -> Any:
    """Compile a kernel, which releases the interpreter lock, when it is first called, and keep it on disk."""
    return watch_shared_sources(numba.njit(nogil=True, cache=True)(function))


inlined = numba.njit(nogil=True, inline="always")
"""For loops inside kernels: inlined before anything is compiled, so that constant bounds and formats reach them."""

specialized: Callable[[Callable[..., Any]], Callable[..., Any]] = functools.cache
"""Decorates a function that makes a kernel for one float format: a closure, whose cells numba compiles as constants."""


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
def draw(noise, mixed_seed, first):
    """Fill `noise`, of uint32, with the random bits of coordinates from `first` on: the leading half of their words.

    In a loop of its own, because one with words of two widths does not become vector instructions.
    """
    word = np.uint64(first) * GOLDEN + mixed_seed
    for i in range(np.uint64(noise.size)):
        noise[i] = np.uint32(mix64(word) >> np.uint64(32))
        word += GOLDEN


@jit
def draw_at(noise, mixed_seed, first, index):
    """Fill the start of `noise` with the random bits of the coordinates first + index[j], as `draw` does."""
    for j in range(np.uint64(index.size)):
        noise[j] = np.uint32(random_word(mixed_seed, first + np.uint64(index[j])) >> np.uint64(32))


@jit
def float_of_bits(bits):
    """The float32 that the uint32 `bits` spell."""
    return np.uint32(bits).view(np.float32)


@jit
def bits_of_float(value):
    """The uint32 bits of the float32 `value`."""
    return np.float32(value).view(np.uint32)


@jit
def shifted_left(bits, count):
    """The uint32 `bits` shifted left by `count` from 0 to 31."""
    return np.uint32(np.uint32(bits) << np.uint32(count))


@jit
def shifted_right(bits, count):
    """The uint32 `bits` shifted right by `count` from 0 to 31, filling with zeros."""
    return np.uint32(np.uint32(bits) >> np.uint32(count))


@jit
def widen(code, exponent, mantissa):
    """The float32 value of `code`, a float of `exponent` and `mantissa` bits in the low bits of a uint32.

    float8_e4m3fn is told by its exponent of 4 bits: it has no infinity and its only NaN is all ones.
    """
    code = np.uint32(code)
    width = exponent + mantissa
    magnitude = np.uint32(code & np.uint32((1 << width) - 1))
    sign = shifted_left(shifted_right(code, width), 31)
    rebias = 128 - (1 << (exponent - 1))
    bits = np.uint32(shifted_left(magnitude, 23 - mantissa) + np.uint32(rebias << 23))
    if exponent < 8:
        # A subnormal: an exact integer times a power of two that float32 holds as a normal number.
        unit = float_of_bits(np.uint32((rebias + 1 - mantissa) << 23))
        small = bits_of_float(np.float32(np.int32(magnitude)) * unit)
        bits = small if magnitude < np.uint32(1 << mantissa) else bits
        if exponent == 4:
            bits = np.uint32(rounding.NAN) if magnitude == np.uint32(0x7F) else bits
        else:
            infinite = np.uint32(bits | INFINITY)
            bits = infinite if magnitude >= np.uint32(((1 << exponent) - 1) << mantissa) else bits
    return float_of_bits(np.uint32(bits | sign))


@jit
def _finish(value_bits, code, layout):
    """Add sign, overflow and NaN to a rounded magnitude."""
    exponent, mantissa, overflow, nan = layout
    sign = shifted_left(shifted_right(value_bits, 31), exponent + mantissa)
    signed = np.uint32(min(code, np.uint32(overflow)) | sign)
    return np.uint32(nan) if np.uint32(value_bits & MAGNITUDE) > INFINITY else signed


@jit
def round_nearest(value, layout):
    """`rounding.round_float32` of one float32 to nearest even: the code, in the low bits of a uint32.

    `layout` is the tuple (exponent, mantissa, overflow, nan) of a `rounding.FloatFormat`.
    """
    bits = bits_of_float(value)
    magnitude = np.uint32(bits & MAGNITUDE)
    if layout[1] == 23:
        return _finish(bits, magnitude, layout)
    rebias, drop = 128 - (1 << (layout[0] - 1)), 23 - layout[1]
    odd = np.uint32(shifted_right(magnitude, drop) & np.uint32(1))
    below_half = np.uint32((1 << (drop - 1)) - 1 - (rebias << 23))  # modulo 2**32: takes the wider bias off, too
    if rebias == 0:
        # The sign may stay where it is, and what is too large becomes infinity by itself.
        code = shifted_right(np.uint32(np.uint32(bits + odd) + below_half), drop)
        return np.uint32(layout[3]) if magnitude > INFINITY else code
    code = shifted_right(np.uint32(np.uint32(magnitude + odd) + below_half), drop)
    if rebias > 0:
        # A subnormal: the sum with a number whose last place is the format's smallest step rounds to such steps.
        steps = np.uint32((rebias + 1 + drop) << 23)
        small = np.uint32(bits_of_float(float_of_bits(magnitude) + float_of_bits(steps)) - steps)
        code = small if magnitude < np.uint32((rebias + 1) << 23) else code
    return _finish(bits, code, layout)


@jit
def round_stochastic(value, layout, noise):
    """`rounding.round_float32` of one float32 with the uint32 `noise`: the code, in a uint32. Not for float32 itself.

    The 32 bits below the binary point carry into the code where `noise` exceeds what they lack to the next. Of a number
    that loses `drop` bits, the other bits are 0, and so as many leading bits of the noise decide.
    """
    bits = bits_of_float(value)
    magnitude = np.uint32(bits & MAGNITUDE)
    rebias, drop = 128 - (1 << (layout[0] - 1)), 23 - layout[1]
    leading = shifted_right(noise, 32 - drop)
    if rebias == 0:
        code = shifted_right(np.uint32(bits + leading), drop)
        return np.uint32(layout[3]) if magnitude > INFINITY else code
    code = shifted_right(np.uint32(np.uint32(magnitude - np.uint32(rebias << 23)) + leading), drop)
    # A subnormal, counted in the format's smallest steps; each operation is exact, or cuts off as it should.
    subnormal = magnitude < np.uint32((rebias + 1) << 23)
    steps = float_of_bits(magnitude if subnormal else np.uint32(0)) * float_of_bits((253 - rebias + layout[1]) << 23)
    whole = np.int32(steps)
    cut = np.uint32((steps - np.float32(whole)) * np.float32(2.0**32))
    # The carry of cut + noise, by the sum of their halves: LLVM vectorises no loop with the idiom cut + noise < noise.
    halves = np.uint32(shifted_right(cut, 1) + shifted_right(noise, 1))
    carry = shifted_right(np.uint32(halves + np.uint32(np.uint32(cut & noise) & np.uint32(1))), 31)
    code = np.uint32(np.uint32(whole) + carry) if subnormal else code
    return _finish(bits, code, layout)


@jit
def round_drawn(value, layout, noise):
    """`rounding.round_drawn` of one float32 with the uint32 `noise`: the code, in a uint32. Not for float32 itself."""
    code = round_stochastic(value, layout, noise)
    if layout[0] == 4:
        return code
    beyond = np.uint32(code & np.uint32((1 << (layout[0] + layout[1])) - 1)) >= np.uint32(layout[2])
    nearest = round_nearest(value, layout)
    return nearest if beyond else code
