"""Products of float32 matrices on the matrix unit of x86 processors, which takes bfloat16: see `amx_cpu`.

A float32 has 24 bits of significand and a bfloat16 8, so a float32 is the sum of a few bfloat16 terms: two on the left
are all but 2**-17 of it, three on the right all but 2**-24. Of their products four are taken, and of the rest no more
than 2**-16 of the product is lost. Where every number on the left is a bfloat16, and the difference of two bfloat16
numbers within a factor of two of each other is one, the first three of them have the accuracy of float32.
"""

from __future__ import annotations

import numpy as np

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.cpu_math import bits_of_float, float_of_bits, jit

SIDE = 32
"""Rows and columns of C that one product takes; its depth is a multiple of it."""
LEFT_TERMS = 2
RIGHT_TERMS = 3
_DEPTH = 256  # of a product: what it reads on the right stays in the first cache

_UNIT = amx_cpu.CONFIGURATION
_HIGH = np.uint32(0xFFFF0000)
_HALF = np.uint32(0x8000)
_16 = np.uint32(16)


@jit
def pack_terms(panels, terms):
    """Split float32 `panels` [p, depth, 32] into `terms` [RIGHT_TERMS, p, depth / 2, 32], uint32: pairs along depth."""
    step = panels.size // 2
    flat = panels.reshape(-1)
    highs, mids, lows = terms[:step], terms[step : 2 * step], terms[2 * step :]
    for pair in range(step // SIDE):
        for j in range(SIDE):
            even, odd = flat[2 * SIDE * pair + j], flat[2 * SIDE * pair + SIDE + j]
            high, high_odd = _rounded(even), _rounded(odd)
            even, odd = even - float_of_bits(high), odd - float_of_bits(high_odd)
            mid, mid_odd = _rounded(even), _rounded(odd)
            low, low_odd = _rounded(even - float_of_bits(mid)), _rounded(odd - float_of_bits(mid_odd))
            place = SIDE * pair + j
            highs[place] = np.uint32(np.uint32(high >> _16) | high_odd)
            mids[place] = np.uint32(np.uint32(mid >> _16) | mid_odd)
            lows[place] = np.uint32(np.uint32(low >> _16) | low_odd)


@jit
def _rounded(value):
    """The bits of the float32 `value` rounded to bfloat16, the low half zero."""
    return np.uint32(np.uint32(bits_of_float(value) + _HALF) & _HIGH)


@jit
def split_row(values, high, low):
    """Split float32 `values` into two terms each; return whether there is any second one.

    The second term is cut off and not rounded: that keeps a NaN, which the first may lose.
    """
    found = np.uint32(0)
    for i in range(values.size):
        first = _rounded(values[i])
        second = np.uint32(bits_of_float(values[i] - float_of_bits(first)) >> _16)
        high[i] = np.uint16(first >> _16)
        low[i] = np.uint16(second)
        found = np.uint32(found | second)
    return found != np.uint32(0)


@jit
def multiply_terms(left, pitch, rows, both, right, panels, depth, j, count, product):
    """product [panels, rows, 32] += `rows` rows of `left` times rows j ... j + count of `right`.

    `left` is [LEFT_TERMS, rows, pitch] as of `split_row`, of which the second term counts if `both`; `right` is
    [RIGHT_TERMS, panels, depth / 2, 32, 2] of `pack_terms`, as uint16.
    """
    step = panels * depth * SIDE
    for panel in range(panels):
        for k in range(0, count, _DEPTH):
            b, taken = (panel * depth + j + k) * SIDE, min(_DEPTH, count - k)
            for i in range(0, rows, SIDE):
                a, c = i * pitch + k, (panel * rows + i) * SIDE
                if both:
                    amx_cpu.tile_product(_UNIT, left, rows * pitch + a, pitch, right, b, product, c, taken)
                for term in range(RIGHT_TERMS - 1, -1, -1):
                    amx_cpu.tile_product(_UNIT, left, a, pitch, right, b + term * step, product, c, taken)
