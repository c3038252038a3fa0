"""after − before times a narrow matrix, for numba kernels: a tile of both sides at a time, in a core's cache.

Where few elements of a tile have changed, the rows of the narrow matrix that they name are added up. Elsewhere the
difference is formed and multiplied: on the processor's matrix unit where it has one and that is as exact as float32,
else on vector registers. What is done with a tile depends on its elements alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common import delta_unit_cpu as unit
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.cpu_math import INFINITY, bits_of_float, float_of_bits, inlined, jit, widen
from rlforget_kernels.common.cpu_vectors import LANES, count_bits, differences, lowest_bit
from rlforget_kernels.common.delta_changes_cpu import add_changes, difference
from rlforget_kernels.common.delta_gather_cpu import gather
from rlforget_kernels.common.delta_sparse_cpu import SUM, add_weighted_rows
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS, tile_product
from rlforget_kernels.common.rounding import FLOAT_FORMAT

ROWS = 64
"""Rows of a tile."""
DEPTH = 1536
"""Columns of a tile at most: long rows, for memory is fastest read in order."""
_PITCH = DEPTH + unit.SIDE
"""From row to row in scratch: no power of two, for which rows would drive each other from the cache."""
_RIGHT = 1 << 17
"""Elements on the right that a tile is multiplied with, about."""
_SPARSE = 24
"""On the matrix unit a tile is sparse where one of so many elements changed: then adding rows takes less time."""
_CHUNK = 128  # columns that the unit multiplies at a time: what it reads on the right stays in the first cache
_FLUSHED = 16  # rows whose squares are added up in float32


class Matrix(NamedTuple):
    """A 2-D tensor wherever its elements lie: the unsigned code of (i, j) is at flat[i · row + j · column]."""

    flat: npt.NDArray[Any]
    row: int
    column: int


def matrix(tensor: Tensor) -> Matrix:
    """Describe a 2-D `tensor` of any strides without a copy."""
    bits = tensor.detach().view(bits_dtype(tensor.dtype))
    row, column = (stride if size > 1 else 1 for size, stride in zip(bits.shape, bits.stride(), strict=True))
    span = 1 + (bits.shape[0] - 1) * row + (bits.shape[1] - 1) * column if bits.numel() else 0
    flat = bits.as_strided((span,), (1,)).numpy()
    return Matrix(flat.view(f"u{bits.element_size()}"), row, column)


def float_format(dtype: torch.dtype) -> tuple[int, int]:
    """Bits of the exponent and the mantissa of `dtype`; any for float64."""
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
    return short and not float64 and width(float64) == unit.SIDE and amx_cpu.available()


class Factor(NamedTuple):
    """What differences are multiplied with.

    Attributes:
        rows: [k, r], float32 or float64.
        numbers: What `packed` makes of it.
        panels: What dense tiles are multiplied with: `numbers`, or for the matrix unit bfloat16 terms as uint16.
        finite: Whether all numbers are: else what has not changed makes NaN.
    """

    rows: npt.NDArray[Any]
    numbers: npt.NDArray[Any]
    panels: npt.NDArray[Any]
    finite: bool


def factor(right: Tensor, float64: bool, matrix_unit: bool) -> Factor:
    """Make a factor of `right` [k, r]: float32, or with `float64` also float64."""
    rows, numbers = right.detach().contiguous().numpy(), packed(right, float64)
    panels = packed_terms(rows, unit.TERMS, LANES) if matrix_unit else numbers
    return Factor(rows, numbers, panels, bool(_finite(rows.reshape(-1).view(f"u{rows.itemsize}"))))


def packed(right: Tensor, float64: bool) -> npt.NDArray[Any]:
    """Lay the columns of `right` [k, r] out as products take them: panels [panels, k, width], zeros added."""
    (depth, rank), panel = right.shape, width(float64)
    panels = -(-rank // panel)
    held = torch.empty(panels, depth, panel, dtype=torch.float64 if float64 else torch.float32)
    whole = rank // panel
    held[:whole] = right.detach()[:, : whole * panel].unflatten(1, (whole, panel)).transpose(0, 1)
    if whole < panels:
        held[whole, :, : rank % panel] = right.detach()[:, whole * panel :]
        held[whole, :, rank % panel :] = 0
    return held.reshape(-1).numpy()


def packed_terms(right: npt.NDArray[Any], terms: int, multiple: int) -> npt.NDArray[np.uint16]:
    """The same for the matrix unit, in bfloat16 terms: [terms, panels, k rounded up to `multiple` / 2, width, 2]."""
    depth, panels = rounded_up(len(right), multiple), -(-right.shape[1] // unit.SIDE)
    held = aligned(terms * panels * depth * unit.SIDE // 2, False).view(np.uint32)
    unit.pack_terms(right, depth, terms, held)
    return held.view(np.uint16)


@jit
def rounded_up(count, multiple):
    """`count`, or the next multiple."""
    return -(-count // multiple) * multiple


@jit
def _finite(codes):
    """Whether all floats are finite, given their bits."""
    infinity = np.uint64(0x7FF0000000000000) if codes.itemsize == 8 else np.uint64(INFINITY)
    largest = np.uint64(0)
    for code in codes:
        largest = max(largest, np.uint64(code) & np.uint64(0x7FFFFFFFFFFFFFFF if codes.itemsize == 8 else 0x7FFFFFFF))
    return largest < infinity


@jit
def multiply(a, a_start, a_row, a_step, rows, b, b_start, b_panel, depth, c, c_start, c_rows, panels):
    """C += A·B for rows rounded up to `TILE_ROWS`; panels of B are b_panel apart, and those of C are of c_rows."""
    panel = PANEL_BYTES // c.itemsize
    for first in range(0, depth, SUM):
        count = min(SUM, depth - first)
        for p in range(panels):
            b_here = b_start + p * b_panel + first * panel
            for i in range(0, rows, TILE_ROWS):
                a_here = a_start + i * a_row + first * a_step
                tile_product(a, a_here, a_row, a_step, b, b_here, c, c_start + (p * c_rows + i) * panel, count)


class Scratch(NamedTuple):
    """What a thread works in.

    Attributes:
        codes: Rows of both sides of a tile, where they do not lie as such.
        wide: A row of both as bfloat16, where they are narrower.
        block: The tile's difference, for vector registers.
        terms: The same in two bfloat16 terms, for the matrix unit.
        changed: A bit an element: whether it has changed.
        inexact: A bit an element of a row: whether its first term is not all of it; see `delta_unit_cpu.split`.
        bounds: For the matrix unit: where in `places` those of each row begin.
        places: Columns where one term is not all of the difference.
        values: What is left there.
        squares: Sums of squares, by column.
        product: Of a part's rows, [panels, rows, width].
    """

    codes: npt.NDArray[Any]
    wide: npt.NDArray[np.uint16]
    block: npt.NDArray[Any]
    terms: npt.NDArray[np.uint16]
    changed: npt.NDArray[np.uint64]
    inexact: npt.NDArray[np.uint32]
    bounds: npt.NDArray[np.int64]
    places: npt.NDArray[np.int32]
    values: npt.NDArray[Any]
    squares: npt.NDArray[Any]
    product: npt.NDArray[Any]


def scratch(rows: int, columns: int, dtype: torch.dtype, float64: bool) -> Scratch:
    """Make room for parts of so many rows, of matrices of `dtype`, and factors of so many columns."""
    number = torch.float64 if float64 else torch.float32
    unit_there = by_matrix_unit(dtype, float64)

    def room(count: int, kind: torch.dtype) -> npt.NDArray[Any]:
        return torch.zeros(count, dtype=kind).numpy()

    codes = room(2 * ROWS * _PITCH, bits_dtype(dtype))
    listed = ROWS * DEPTH // _SPARSE + DEPTH  # in sparse rows, and in a last one that turns out not to be sparse
    panels = -(-columns // width(float64))
    return Scratch(
        codes.view(f"u{codes.itemsize}"),
        room(2 * _PITCH, torch.int16).view(np.uint16),
        room(0 if unit_there else ROWS * DEPTH, number),
        room(2 * ROWS * _PITCH if unit_there else 0, torch.int16).view(np.uint16),
        room(ROWS * DEPTH // LANES, torch.int64).view(np.uint64),
        room(DEPTH // unit.LANES, torch.int32).view(np.uint32),
        room(ROWS + 1, torch.int64),
        room(listed if unit_there else 0, torch.int32),
        room(listed if unit_there else 0, number),
        room(DEPTH, number),
        room(panels * rounded_up(rows, ROWS) * width(float64), number),
    )


@inlined
def multiply_part(sides, place, factor, scratch, exponent, mantissa):
    """Write the product of the difference at `place` to scratch.product; return the sum of squares of the difference.

    `sides` is the `matrix` of before and that of after, with their `float_format`; `place` is the first row, the one
    behind the last, and the columns likewise; `factor` has as many rows as there are columns. The product is
    [panels, rows rounded up to ROWS, width].
    """
    before, b_row, b_column, after, a_row, a_column = sides
    start, stop, left, right = place
    columns = right - left
    product, codes = scratch.product, scratch.codes
    panel, held = PANEL_BYTES // product.itemsize, rounded_up(stop - start, ROWS)
    panels = -(-factor.rows.shape[1] // panel)
    product[: panels * held * panel] = 0
    # What is read on the right for a tile should stay in the second cache.
    most = min(DEPTH, max(_RIGHT // (panels * panel) // LANES, 1) * LANES)
    depth = rounded_up(-(-columns // max(-(-columns // most), 1)), LANES)
    energy = 0.0
    _begin(factor.panels)
    for j in range(0, columns, max(depth, 1)):
        count = min(depth, columns - j)
        taken = rounded_up(count, LANES)
        for i in range(start, stop, ROWS):
            rows = min(ROWS, stop - i)
            old, b_start, b_pitch = before, i * b_row + (left + j) * b_column, b_row
            new, a_start, a_pitch = after, i * a_row + (left + j) * a_column, a_row
            if b_column != 1 or a_column != 1 or count < taken:
                gather(before, b_start, b_row, b_column, rows, count, codes, _PITCH, taken)
                gather(after, a_start, a_row, a_column, rows, count, codes[ROWS * _PITCH :], _PITCH, taken)
                old, b_start, b_pitch = codes, 0, _PITCH
                new, a_start, a_pitch = codes, ROWS * _PITCH, _PITCH
            found = _look(old, b_start, b_pitch, new, a_start, a_pitch, rows, taken, scratch.changed)
            if found == 0 and factor.finite:
                continue
            both = (old, b_start, b_pitch, new, a_start, a_pitch)
            tile = (j, columns, held, i - start)
            if found * _rarity(factor.panels, panels) <= rows * taken and factor.finite:
                energy += _add_changes(both, rows, taken, tile, panels, factor.numbers, scratch, exponent, mantissa)
            else:
                energy += _add_tile(both, rows, taken, tile, panels, factor, scratch, exponent, mantissa)
    _end(factor.panels)
    return energy


@jit
def _look(old, b_start, b_pitch, new, a_start, a_pitch, rows, taken, changed):
    """Mark the elements of a tile that differ, and count them."""
    found, word = np.uint64(0), np.uint64(0)
    for k in range(rows):
        b_here, a_here = b_start + k * b_pitch, a_start + k * a_pitch
        first, second = old[b_here : b_here + taken], new[a_here : a_here + taken]
        for l in range(np.uint64(0), np.uint64(taken), np.uint64(LANES)):
            marks = differences(first, second, l)
            changed[word] = marks
            found += count_bits(marks)
            word += np.uint64(1)
    return np.int64(found)


@inlined
def _add_changes(both, rows, taken, place, panels, numbers, scratch, exponent, mantissa):
    """Add the product of the changes that `scratch.changed` marks; return their sum of squares.

    Columns by columns, so that what is read on the right stays in the first cache.
    """
    old, b_start, b_pitch, new, a_start, a_pitch = both
    j, columns, held, row = place
    changed, product = scratch.changed, scratch.product
    panel, words = PANEL_BYTES // product.itemsize, taken // LANES
    energy = 0.0
    for word in range(words):
        for k in range(rows):
            b, a = b_start + k * b_pitch + word * LANES, a_start + k * a_pitch + word * LANES
            marks = changed[k * words + word]
            if marks == 0:
                continue
            energy += add_changes(
                marks,
                old,
                b,
                new,
                a,
                exponent,
                mantissa,
                numbers,
                (j + word * LANES) * panel,
                columns * panel,
                product,
                (row + k) * panel,
                held * panel,
                panels,
            )
    return energy


@jit
def _add_rows(values, places, bounds, rows, place, right, product):
    """Add, to each row of a tile, Σ values · the rows of `right` that its places name."""
    j, _, held, row = place
    panel = PANEL_BYTES // product.itemsize
    for k in range(rows):
        if bounds[k] < bounds[k + 1]:
            target, step = (row + k) * panel, held * panel
            add_weighted_rows(values, places, bounds[k], bounds[k + 1], -j, right, product, target, step)


def _begin(panels):
    raise NotImplementedError("compiled only")


def _end(panels):
    raise NotImplementedError("compiled only")


def _rarity(panels, count):
    """Of how many elements at least one must have changed for a tile to be sparse no more."""
    raise NotImplementedError("compiled only")


def _add_tile(both, rows, taken, place, panels, factor, scratch, exponent, mantissa):
    """Add the product of a tile; return its sum of squares."""
    raise NotImplementedError("compiled only")


@overload(_begin, inline="always")
def _overload_begin(panels):
    if panels.dtype == types.uint16:
        return lambda panels: amx_cpu.configure(amx_cpu.CONFIGURATION)
    return lambda panels: None


@overload(_end, inline="always")
def _overload_end(panels):
    if panels.dtype == types.uint16:
        return lambda panels: amx_cpu.release()
    return lambda panels: None


@overload(_rarity, inline="always")
def _overload_rarity(panels, count):
    if panels.dtype == types.uint16:
        return lambda panels, count: _SPARSE
    # By vectors, an element that has changed takes as long as two that are multiplied, or three by few columns.
    return lambda panels, count: 3 if count == 1 else 2


@overload(_add_tile, inline="always")
def _overload_add_tile(both, rows, taken, place, panels, factor, scratch, exponent, mantissa):
    return _add_tile_by_unit if factor[2].dtype == types.uint16 else _add_tile_by_vectors


def _add_tile_by_vectors(both, rows, taken, place, panels, factor, scratch, exponent, mantissa):
    old, b_start, b_pitch, new, a_start, a_pitch = both
    j, columns, held, row = place
    block, squares, product = scratch.block, scratch.squares, scratch.product
    panel = PANEL_BYTES // product.itemsize
    squares[:taken] = 0
    for k in range(rows):
        b_here, a_here = b_start + k * b_pitch, a_start + k * a_pitch
        was, now = old[b_here : b_here + taken], new[a_here : a_here + taken]
        target = block[k * DEPTH : k * DEPTH + taken]
        for l in range(taken):
            delta = difference(now[l], was[l], target[l], exponent, mantissa)
            target[l] = delta
            squares[l] += delta * delta
    energy = 0.0
    for square in squares[:taken]:
        energy += np.float64(square)
    right, count, target = factor.panels, min(taken, columns - j), row * panel
    multiply(block, 0, DEPTH, 1, rows, right, j * panel, columns * panel, count, product, target, held, panels)
    return energy


def _add_tile_by_unit(both, rows, taken, place, panels, factor, scratch, exponent, mantissa):
    old, b_start, b_pitch, new, a_start, a_pitch = both
    terms, inexact, squares = scratch.terms, scratch.inexact, scratch.squares
    places, values, bounds = scratch.places, scratch.values, scratch.bounds
    energy, seconds = 0.0, False
    squares[: unit.LANES] = 0
    bounds[0] = 0
    for k in range(rows):
        b_here, a_here = b_start + k * b_pitch, a_start + k * a_pitch
        was, b_here, now, a_here = _bfloat16(old, b_here, new, a_here, taken, scratch.wide, exponent, mantissa)
        rest = unit.split(was, b_here, now, a_here, taken, terms, k * _PITCH, inexact, 0, squares)
        if k % _FLUSHED == _FLUSHED - 1 or k == rows - 1:
            energy += _flush(squares)
        first = bounds[k]
        bounds[k + 1] = first
        if rest == 0:
            continue
        _list_rest(was, b_here, now, a_here, inexact, taken, places, values, first)
        if rest * _SPARSE <= taken:
            bounds[k + 1] = first + rest
            continue
        if not seconds:
            terms[ROWS * _PITCH :] = 0
            seconds = True
        for m in range(first, first + rest):
            terms[(ROWS + k) * _PITCH + places[m]] = np.uint16(bits_of_float(values[m]) >> np.uint32(16))
    _add_rows(values, places, bounds, rows, place, factor.rows, scratch.product)
    _multiply_terms(terms, 0, rows, taken, place, panels, factor, scratch.product)
    if seconds:
        _multiply_terms(terms, ROWS * _PITCH, rows, taken, place, panels, factor, scratch.product)
    return energy


@inlined
def _list_rest(old, b_start, new, a_start, inexact, taken, places, values, found):
    """Write where the first term is not all of a row's difference, and what it lacks, from `found` on."""
    found = np.uint64(found)
    for word in range(np.uint64(taken // unit.LANES)):
        marks = np.uint64(inexact[word])
        while marks:
            column = np.int64(word) * unit.LANES + unit.element_of(np.int64(lowest_bit(marks)))
            delta = widen(new[a_start + column], 8, 7) - widen(old[b_start + column], 8, 7)
            places[found] = np.int32(column)
            values[found] = delta - float_of_bits(unit.rounded(delta))
            found += np.uint64(1)
            marks &= marks - np.uint64(1)


def _bfloat16(old, b_here, new, a_here, taken, wide, exponent, mantissa):
    """Where a row of both sides is as bfloat16 codes: (before, start, after, start)."""
    raise NotImplementedError("compiled only")


@overload(_bfloat16, inline="always")
def _overload_bfloat16(old, b_here, new, a_here, taken, wide, exponent, mantissa):
    if old.dtype == types.uint16:
        return lambda old, b_here, new, a_here, taken, wide, exponent, mantissa: (old, b_here, new, a_here)
    return _widened


def _widened(old, b_here, new, a_here, taken, wide, exponent, mantissa):
    for l in range(taken):
        wide[l] = np.uint16(bits_of_float(widen(old[b_here + l], exponent, mantissa)) >> np.uint32(16))
        wide[_PITCH + l] = np.uint16(bits_of_float(widen(new[a_here + l], exponent, mantissa)) >> np.uint32(16))
    return wide, 0, wide, _PITCH


@jit
def _flush(squares):
    energy = 0.0
    for k in range(unit.LANES):
        energy += np.float64(squares[k])
        squares[k] = 0
    return energy


@jit
def _multiply_terms(terms, start, rows, taken, place, panels, factor, product):
    """Add the product of a tile's first (`start` is 0) or second terms."""
    j, columns, held, row = place
    depth = rounded_up(columns, LANES)
    step = panels * depth * unit.SIDE
    for first in range(0, taken, _CHUNK):
        count = min(_CHUNK, taken - first)
        for p in range(panels):
            b_here = (p * depth + j + first) * unit.SIDE
            for i in range(0, rows, unit.SIDE):
                a_here, c_here = start + i * _PITCH + first, (p * held + row + i) * unit.SIDE
                right, side = factor.panels, unit.SIDE
                if start == 0:
                    unit.add_product(terms, a_here, _PITCH, 0, right, b_here, step, product, c_here, side, count)
                else:
                    unit.add_leading_product(terms, a_here, _PITCH, 0, right, b_here, 0, product, c_here, side, count)
