"""after − before for numba kernels, a block at a time in scratch that stays in a core's cache, and its products."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.bfloat16_split_cpu import LANES, split_difference
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.cpu_math import inlined, jit, widen
from rlforget_kernels.common.matrix_unit_cpu import (
    LEFT_TERMS,
    RIGHT_TERMS,
    SIDE,
    multiply_terms,
    pack_terms,
    split_row,
)
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS, tile_product
from rlforget_kernels.common.rounding import FLOAT_FORMAT

ROWS = 128
"""Rows of a block at most."""
DEPTH = 1024
"""Columns of a block: long rows, for memory is fastest read in order."""
_PITCH = DEPTH + SIDE
"""From row to row of a block's terms: no power of two, for which rows would drive each other from the cache."""
_TOGETHER = 16  # columns of a matrix that does not lie in rows
_NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}
SUM = 256
"""Products that are added up before their sum is added to that of those before them."""


class Matrix(NamedTuple):
    """A 2-D tensor wherever its elements lie: (i, j) is at flat[i · row + j · column], a number or a code."""

    flat: npt.NDArray[Any]
    row: int
    column: int


def matrix(tensor: Tensor) -> Matrix:
    """Describe a 2-D `tensor` of any strides without a copy."""
    bits = tensor.detach().view(bits_dtype(tensor.dtype))
    row, column = (stride if size > 1 else 1 for size, stride in zip(bits.shape, bits.stride(), strict=True))
    span = 1 + (bits.shape[0] - 1) * row + (bits.shape[1] - 1) * column if bits.numel() else 0
    flat = bits.as_strided((span,), (1,)).numpy()
    return Matrix(flat.view(_NUMBERS.get(tensor.dtype, f"u{bits.element_size()}")), row, column)


def float_format(dtype: torch.dtype) -> tuple[int, int]:
    """Bits of the exponent and the mantissa of the codes that `matrix` makes of `dtype`; any for numbers."""
    return FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])[:2]


def width(float64: bool) -> int:
    """Columns of a panel."""
    return PANEL_BYTES // (8 if float64 else 4)


def aligned(count: int, float64: bool) -> npt.NDArray[Any]:
    """Make an array that starts where a cache line does, as numpy's do not: vectors that cross lines are slow."""
    return torch.empty(count, dtype=torch.float64 if float64 else torch.float32).numpy()


def by_matrix_unit(dtype: torch.dtype, float64: bool) -> bool:
    """Whether differences of this dtype are multiplied on the matrix unit: where it is there, and as exact as float32.

    That is where bfloat16 holds what they are differences of.
    """
    short = dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    return short and not float64 and width(float64) == SIDE and amx_cpu.available()


def packed(right: Tensor, float64: bool, matrix_unit: bool = False) -> npt.NDArray[Any]:
    """Lay the columns of `right` [k, r] out as products take them: panels [panels, k, width], zeros added.

    For the matrix unit k is rounded up to SIDE, and what is returned are the panels' bfloat16 terms, as uint16.
    """
    rows, columns = right.shape
    depth = _rounded_up(rows, SIDE) if matrix_unit else rows
    source = matrix(right)
    count = -(-columns // width(float64))
    held = aligned(count * depth * width(float64), float64).reshape(count, depth, width(float64))
    _pack(source.flat, source.row, source.column, rows, columns, held)
    if not matrix_unit:
        return held.reshape(-1)
    terms = aligned(RIGHT_TERMS * held.size // 2, False).view(np.uint32)
    pack_terms(held, terms)
    return terms.view(np.uint16)


@jit
def _rounded_up(count, multiple):
    return -(-count // multiple) * multiple


@jit
def _pack(values, row, column, rows, columns, held):
    """held[p, k, j] = values at (k, p · width + j), 0 beyond the rows and columns."""
    panels, depth, panel = held.shape
    flat = held.reshape(-1)
    for p in range(panels):
        first = p * panel
        for k in range(depth):
            count = min(panel, columns - first) if k < rows else 0
            target, start = (p * depth + k) * panel, k * row + first * column
            if column == 1:
                for j in range(count):
                    flat[target + j] = values[start + j]
            else:
                for j in range(count):
                    flat[target + j] = values[start + j * column]
            for j in range(count, panel):
                flat[target + j] = 0


@jit
def multiply(a, a_start, a_row, a_step, rows, b, b_start, b_panel, depth, c, c_rows):
    """C += A·B for rows rounded up to `TILE_ROWS`; C is [panels, c_rows, width], and B's panels are b_panel apart."""
    panel = PANEL_BYTES // c.itemsize
    for first in range(0, depth, SUM):
        count = min(SUM, depth - first)
        for p in range(c.size // (c_rows * panel)):
            b_here = b_start + p * b_panel + first * panel
            for i in range(0, rows, TILE_ROWS):
                a_here = a_start + i * a_row + first * a_step
                tile_product(a, a_here, a_row, a_step, b, b_here, c, (p * c_rows + i) * panel, count)


class Scratch(NamedTuple):
    """What a thread works in.

    Attributes:
        block: after − before, [rows, DEPTH], rows being a multiple of SIDE.
        terms: Its bfloat16 terms [LEFT_TERMS, rows, _PITCH] for the matrix unit.
        squares: Sums of the squares of the block's columns.
        product: Of its rows, [panels, rows, width].
    """

    block: npt.NDArray[Any]
    terms: npt.NDArray[np.uint16]
    squares: npt.NDArray[Any]
    product: npt.NDArray[Any]


def scratch(columns: int, float64: bool) -> Scratch:
    """Make room for products with a factor of so many columns."""
    panels = -(-columns // width(float64))
    # With many panels the right-hand side is read from farther away, so the more rows are multiplied with what is read.
    rows = min(max(2 * SIDE, 16 * panels), ROWS)
    block, squares = aligned(rows * DEPTH, float64), aligned(DEPTH, float64)
    terms = aligned(LEFT_TERMS * rows * _PITCH // 2 * by_matrix_unit(torch.bfloat16, float64), False).view(np.uint16)
    return Scratch(block, terms, squares, aligned(panels * rows * width(float64), float64))


@inlined
def multiply_rows(sides, i, rows, columns, factor, scratch, exponent, mantissa):
    """Write rows i ... i + rows of the product to scratch.product; return the sum of squares of their difference.

    `sides` is the `matrix` of before and that of after, with its `float_format`; `factor` what `packed` made of as many
    rows as columns.
    """
    block, terms, squares, product = scratch
    product[:] = 0
    squares[:] = 0
    for j in range(0, columns, DEPTH):
        place = (i, j, rows, min(DEPTH, columns - j))
        _multiply_block(sides, place, columns, factor, block, terms, squares, product, exponent, mantissa)
    energy = 0.0
    for square in squares:
        energy += np.float64(square)
    return energy


def _multiply_block(sides, place, columns, factor, block, terms, squares, product, exponent, mantissa):
    """product += the difference at `place`, (i, j, rows, count), times rows j ... j + count of `factor`."""
    raise NotImplementedError("compiled only")


@overload(_multiply_block, inline="always")
def _overload_multiply_block(sides, place, columns, factor, block, terms, squares, product, exponent, mantissa):
    if factor.dtype == types.uint16:
        return _multiply_by_unit
    return _multiply_by_vectors


def _multiply_by_vectors(sides, place, columns, factor, block, terms, squares, product, exponent, mantissa):
    i, j, rows, count = place
    panel, held = PANEL_BYTES // product.itemsize, block.size // DEPTH
    if _in_columns(sides):
        _fill_across(sides, i, j, rows, count, block, squares, exponent, mantissa)
        multiply(block, 0, 1, held, rows, factor, j * panel, columns * panel, count, product, held)
    else:
        _fill(sides, i, j, rows, count, block, squares, exponent, mantissa)
        multiply(block, 0, DEPTH, 1, rows, factor, j * panel, columns * panel, count, product, held)


def _multiply_by_unit(sides, place, columns, factor, block, terms, squares, product, exponent, mantissa):
    i, j, rows, count = place
    before, b_row, b_column, after, a_row, a_column = sides
    held = block.size // DEPTH
    both = False
    if b_column == 1 and a_column == 1 and exponent == 8 and before.itemsize == 2 and count % LANES == 0:
        for k in range(rows):
            b_start, a_start, high = (i + k) * b_row + j, (i + k) * a_row + j, k * _PITCH
            low = high + held * _PITCH
            both |= split_difference(before, b_start, after, a_start, count, terms, high, low, squares)
    else:
        _fill(sides, i, j, rows, count, block, squares, exponent, mantissa)
        both = _split(block, rows, count, terms)
    taken, depth = _rounded_up(count, SIDE), _rounded_up(columns, SIDE)
    multiply_terms(terms, _PITCH, held, both, factor, product.size // (held * SIDE), depth, j, taken, product)


@jit
def _split(block, rows, count, terms):
    """Split the block's first rows, with zeros up to what the unit takes; return whether second terms are there."""
    taken, held = _rounded_up(count, SIDE), block.size // DEPTH
    both = False
    for k in range(rows):
        row = block[k * DEPTH : k * DEPTH + taken]
        row[count:] = 0
        start = k * _PITCH
        high, low = terms[start : start + taken], terms[start + held * _PITCH : start + held * _PITCH + taken]
        both |= split_row(row, high, low)
    return both


@inlined
def _in_columns(sides):
    """Whether it is the columns of both sides whose elements lie side by side."""
    _, b_row, b_column, _, a_row, a_column = sides
    return b_row == 1 and a_row == 1 and b_column > 1 and a_column > 1


@inlined
def _fill_across(sides, i, j, rows, columns, block, squares, exponent, mantissa):
    """`_fill` of what lies in columns, as it lies: block[l · held + k], the block holding so many rows.

    The squares are added in the order of `_fill`, so that a layout changes no bits.
    """
    before, _, b_column, after, _, a_column = sides
    held = block.size // DEPTH
    for first in range(0, columns, _TOGETHER):
        stop = min(first + _TOGETHER, columns)
        for l in range(first, stop):
            b_here, a_here = i + (j + l) * b_column, i + (j + l) * a_column
            old, new = before[b_here : b_here + rows], after[a_here : a_here + rows]
            target = block[l * held : l * held + rows]
            for k in range(rows):
                target[k] = _difference(new[k], old[k], target[k], exponent, mantissa)
        for k in range(rows):
            for l in range(np.uint64(first), np.uint64(stop)):
                delta = block[l * np.uint64(held) + np.uint64(k)]
                squares[l] += delta * delta


@inlined
def _fill(sides, i, j, rows, columns, block, squares, exponent, mantissa):
    """block[k · DEPTH + l] = after − before at (i + k, j + l); squares[l] += the squares of column l."""
    before, b_row, b_column, after, a_row, a_column = sides
    b_start, a_start = i * b_row + j * b_column, i * a_row + j * a_column
    if b_column == 1 and a_column == 1:
        for k in range(rows):
            b_here, a_here = b_start + k * b_row, a_start + k * a_row
            old, new = before[b_here : b_here + columns], after[a_here : a_here + columns]
            target = block[k * DEPTH : k * DEPTH + columns]
            for l in range(columns):
                delta = _difference(new[l], old[l], target[l], exponent, mantissa)
                target[l] = delta
                squares[l] += delta * delta
    else:
        # A few columns at a time: as many lines of memory stay in the first cache as are read, and lines are written.
        for first in range(0, columns, _TOGETHER):
            for k in range(rows):
                for l in range(first, min(first + _TOGETHER, columns)):
                    old, new = before[b_start + k * b_row + l * b_column], after[a_start + k * a_row + l * a_column]
                    delta = _difference(new, old, block[0], exponent, mantissa)
                    block[k * DEPTH + l] = delta
                    squares[l] += delta * delta


def _difference(new, old, like, exponent, mantissa):
    """new − old, of the type of `like`: subtracted in that, or in float64 where they are float64."""
    raise NotImplementedError("compiled only")


@overload(_difference)
def _overload_difference(new, old, like, exponent, mantissa):
    result = np.float64 if like == types.float64 else np.float32
    if new == types.float64:
        return lambda new, old, like, exponent, mantissa: result(new - old)
    if new == types.float32:
        return lambda new, old, like, exponent, mantissa: result(new) - result(old)
    return lambda new, old, like, exponent, mantissa: (
        result(widen(new, exponent, mantissa)) - result(widen(old, exponent, mantissa))
    )
