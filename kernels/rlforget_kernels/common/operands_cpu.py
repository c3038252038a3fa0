"""What a matrix product takes, in the order in which it is read: 32 rows or columns, up to 128 terms deep.

A product C += A B has its left operands in tiles of 32 rows, [row, term], and its right ones in panels of 32 columns.
They are made from float32 matrices whose rows are those of A or the columns of B, or that hold in strips the k-th terms
of every row or column. For the matrix unit (`unit` is true), which takes bfloat16 numbers alone, they are held as such;
see `amx_cpu`. Operands are float32 arrays in either case, whatever they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.cpu_math import bits_of_float, float_of_bits, inlined, jit, widen
from rlforget_kernels.common.memory_cpu import prefetch
from rlforget_kernels.common.products_cpu import PAIRS, PANEL_BYTES, TILE_ROWS, half_product, pair_product, tile_product
from rlforget_kernels.common.transpose_cpu import BLOCK, transpose_block

SIDE = 32
"""Rows of a tile, columns of a panel."""
DEPTH = 128
"""Terms that an operand has room for."""
TILE = SIDE * SIDE
"""Elements of a tile of C, which has an order of its own: see `place`."""
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What kernels call the dtypes."""

_WIDTH = PANEL_BYTES // 4  # columns of a product on vector registers
_PAIRS = DEPTH // 2  # uint32 elements of a row of a tile of bfloat16
_CONFIGURATION = amx_cpu.CONFIGURATION
_16 = np.uint32(16)


def floats(count: int) -> npt.NDArray[np.float32]:
    """Make room for float32 numbers where a cache line starts, as numpy does not: vectors that cross lines are slow."""
    return torch.empty(count).numpy()


def room(count: int) -> npt.NDArray[np.float32]:
    """Make room for `count` tiles or panels."""
    return floats(count * SIDE * DEPTH)


def by_matrix_unit(*dtypes: torch.dtype) -> bool:
    """Whether the matrix unit multiplies numbers of these dtypes."""
    return set(dtypes) == {torch.bfloat16} and amx_cpu.available()


if amx_cpu.available():
    _unit_product: Any = amx_cpu.tile_product
else:

    @jit
    def _unit_product(configuration, a, a_start, a_row, b, b_start, c, c_start, depth):
        """There is no matrix unit, and nobody asks for it."""


if PAIRS:
    _pair_product: Any = pair_product
else:

    @jit
    def _pair_product(a, a_start, a_row, a_step, b, b_start, c, c_start, depth):
        """There are no instructions for it, and nobody asks for it."""


@jit
def width_of(unit):
    """Columns of a strip, a divisor of SIDE. A strip is [DEPTH, width]."""
    return SIDE if unit else _WIDTH


@jit
def place(unit, i, j):
    """Where in a tile of C its element (i, j) is."""
    width = width_of(unit)
    return (j // width) * width * SIDE + i * width + j % width


@jit
def multiply(unit, left, tile, right, panel, out, start, depth):
    """Add the product of a left and a right operand to the tile of C at `start`."""
    first = tile * SIDE * DEPTH
    if unit:
        a, b = left.view(np.uint16), right.view(np.uint16)
        _unit_product(_CONFIGURATION, a, first, DEPTH, b, panel * SIDE * DEPTH, out, start, depth)
        return
    for j in range(0, SIDE, _WIDTH):
        b_start = (panel * SIDE + j) * DEPTH
        for i in range(0, SIDE, TILE_ROWS):
            c_start = start + j * SIDE + i * _WIDTH
            tile_product(left, first + i * DEPTH, DEPTH, 1, right, b_start, out, c_start, depth)


@jit
def multiply_lower(left, tile, right, panel, out, start, depth):
    """The same on vector registers of a tile of which the lower half counts, the diagonal in it."""
    for j in range(0, SIDE, _WIDTH):
        b_start = (panel * SIDE + j) * DEPTH
        for i in range(j, SIDE, TILE_ROWS):
            a_start, c_start = (tile * SIDE + i) * DEPTH, start + j * SIDE + i * _WIDTH
            if i + TILE_ROWS - j <= _WIDTH // 2:
                half_product(left, a_start, DEPTH, 1, right, b_start, out, c_start, depth)
            else:
                tile_product(left, a_start, DEPTH, 1, right, b_start, out, c_start, depth)


@jit
def multiply_strips(pairs, left, tile, right, panel, out, start, depth):
    """The same of operands that are both in strips, for vector registers; with `pairs`, in those of `fill_pairs`."""
    for j in range(0, SIDE, _WIDTH):
        b_start = (panel * SIDE + j) * DEPTH
        for i in range(0, SIDE, TILE_ROWS):
            row = tile * SIDE + i
            a_start = row // _WIDTH * _WIDTH * DEPTH + row % _WIDTH
            c_start = start + j * SIDE + i * _WIDTH
            if pairs:
                a, b = left.view(np.uint32), right.view(np.uint32)
                _pair_product(a, a_start, 1, _WIDTH, b, b_start, out, c_start, depth // 2)
            else:
                tile_product(left, a_start, 1, _WIDTH, right, b_start, out, c_start, depth)


@jit
def left_of_rows(unit, matrix, start, row, depth, left, tile):
    """Make a left operand from 32 rows of A, `row` elements apart."""
    codes = left.view(np.uint16)
    for i in range(SIDE):
        source = matrix[start + i * row : start + i * row + depth]
        target = (tile * SIDE + i) * DEPTH
        if unit:
            _halve(source, codes[target : target + depth])
        else:
            _copy(source, left[target : target + depth])


@jit
def right_of_rows(unit, matrix, start, row, depth, right, panel, spare):
    """Make a right operand from 32 columns of B that lie as rows."""
    if unit:
        left_of_rows(unit, matrix, start, row, depth, spare, 0)
        for j in range(0, SIDE, BLOCK):
            for k in range(0, depth // 2, BLOCK):
                transpose_block(spare, j * _PAIRS + k, _PAIRS, right, (panel * _PAIRS + k) * SIDE + j, SIDE)
        return
    for j in range(0, SIDE, BLOCK):
        target = panel * SIDE * DEPTH + (j // _WIDTH) * _WIDTH * DEPTH + j % _WIDTH
        for k in range(0, depth, BLOCK):
            transpose_block(matrix, start + j * row + k, row, right, target + k * _WIDTH, _WIDTH)


@jit
def fill_rows(values, first, count, rows, feature, matrix, row):
    """matrix[k, f] = feature + f of position first + k; zero where there is none, for `rows` rows of `row`.

    `values` are (flat, offsets, features, format), as of `positions_cpu.Features`.
    """
    flat, offsets, features, form = values
    present = max(0, min(row, features - feature))
    for k in range(count):
        start = offsets[first + k] + feature
        _widen(flat, start, form, matrix, k * row, present)
        matrix[k * row + present : (k + 1) * row] = 0
    matrix[count * row : rows * row] = 0


@jit
def fill_strips(values, first, count, depth, feature, strips, number):
    """strips[s, k, f] = feature + s·width + f of position first + k; zero where there is none.

    Strips of columns of B are right operands for vector registers.
    """
    flat, offsets, features, form = values
    width = _WIDTH
    for k in range(count):
        start = offsets[first + k]
        for strip in range(number):
            at = feature + strip * width
            present = max(0, min(width, features - at))
            target = (strip * DEPTH + k) * width
            _widen(flat, start + at, form, strips, target, present)
            if present < width:
                strips[target + present : target + width] = 0
    for strip in range(number):
        strips[(strip * DEPTH + count) * width : (strip * DEPTH + depth) * width] = 0


@jit
def fill_pairs(values, first, count, depth, feature, strips, number):
    """The same of bfloat16 numbers for `pair_product`: strips[s, k, f], words of the positions 2k and 2k + 1."""
    flat, offsets, features, _ = values
    words, whole = strips.view(np.uint32), min(number, max(0, features - feature) // _WIDTH)
    for k in range(depth // 2):
        if 2 * k + 1 < count:
            start, other = offsets[first + 2 * k] + feature, offsets[first + 2 * k + 1] + feature
            for strip in range(whole):  # of a length that the compiler knows
                _join(flat, start + strip * _WIDTH, other + strip * _WIDTH, words, (strip * DEPTH + k) * _WIDTH, _WIDTH)
        for strip in range(whole if 2 * k + 1 < count else 0, number):
            at, target = feature + strip * _WIDTH, (strip * DEPTH + k) * _WIDTH
            present = max(0, min(_WIDTH, features - at)) if 2 * k < count else 0
            if 2 * k + 1 < count:
                _join(flat, offsets[first + 2 * k] + at, offsets[first + 2 * k + 1] + at, words, target, present)
            elif present > 0:
                start = offsets[first + 2 * k] + at
                for f in range(present):
                    words[target + f] = np.uint32(flat[start + f])
            if present < _WIDTH:
                words[target + present : target + _WIDTH] = 0


@inlined
def _join(flat, start, other, words, target, count):
    """words[target + f] = flat[start + f], and flat[other + f] in the upper half."""
    start, other, target = np.uint64(start), np.uint64(other), np.uint64(target)
    for f in range(np.uint64(count)):
        words[target + f] = np.uint32(flat[start + f]) | np.uint32(np.uint32(flat[other + f]) << _16)


@jit
def prefetch_positions(values, first, count, feature, width):
    """Fetch `width` features of some positions, as far as there are such."""
    flat, offsets, features, _ = values
    stop = min(feature + width, features)
    for p in range(first, min(first + count, offsets.size)):
        for index in range(offsets[p] + feature, offsets[p] + stop, 64 // flat.itemsize):
            prefetch(flat, index)


@jit
def _copy(source, out):
    for k in range(source.size):
        out[k] = source[k]


@jit
def _halve(source, out):
    """The codes of bfloat16 numbers that are held as float32."""
    for k in range(source.size):
        out[k] = np.uint16(bits_of_float(source[k]) >> _16)


@jit
def _widen(source, start, form, out, target, count):
    """out[target + k] = the float32 value of source[start + k], bits of a format. Slices would cost more than this."""
    start, target, count = np.uint64(start), np.uint64(target), np.uint64(count)
    if form == 0:
        for k in range(count):
            out[target + k] = float_of_bits(np.uint32(source[start + k]))
    elif form == 1:
        for k in range(count):
            out[target + k] = float_of_bits(np.uint32(source[start + k]) << _16)
    else:
        for k in range(count):
            out[target + k] = widen(source[start + k], 5, 10)
