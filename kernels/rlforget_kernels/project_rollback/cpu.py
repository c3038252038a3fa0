"""The second half of `project_rollback_` with numba: blocks of the correction in a core's cache, subtracted there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common import delta_unit_cpu as unit
from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.cpu_math import draw, inlined, jit, round_drawn, round_nearest, specialized, widen
from rlforget_kernels.common.delta_blocks_cpu import (
    ROWS,
    by_matrix_unit,
    matrix,
    multiply,
    packed,
    packed_terms,
    rounded_up,
    width,
)
from rlforget_kernels.common.delta_parts_cpu import Part, parts
from rlforget_kernels.common.delta_write_cpu import LANES, subtract_rounded
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.memory_cpu import prefetch
from rlforget_kernels.common.rounding import FLOAT_FORMAT, FloatFormat
from rlforget_kernels.common.threads import in_order

_WIDTH = width(float64=False)
_COLUMNS = 512  # that are computed at a time, of ROWS rows: 128 KiB
_TERMS = 2
_Array = npt.NDArray[Any]


def foreach_subtract_product_(
    weights: list[Tensor],
    u: list[Tensor],
    middle: list[Tensor],
    v: list[Tensor],
    seed: int | None,
    offsets: Sequence[int],
) -> None:
    """Write weight ← weight − U · middle · Vᵀ for every weight, rounded as `subtract_` does."""
    mixed_seed = np.uint64(mix64_int((seed or 0) % 2**64))
    middles = [packed(core, float64=False) for core in middle]

    def work(part: Part[_Array]) -> None:
        k, columns = part.k, weights[part.k].shape[1]
        rows = slice(part.rows.start, part.rows.stop)
        target = matrix(weights[k][rows, part.columns.start : part.columns.stop])
        left = u[k].detach()[rows].contiguous().numpy()
        first = (offsets[k] + rows.start * columns + part.columns.start) % 2**64
        layout = FLOAT_FORMAT.get(weights[k].dtype, FLOAT_FORMAT[torch.float32])
        kernel = _kernel(layout, seed is not None and weights[k].element_size() < 4)
        sizes = (len(part.columns), v[k].shape[1], columns)
        kernel(target, left, middles[k], part.factor.take(), *sizes, mixed_seed, np.uint64(first))

    for _ in in_order(work, parts(weights, v, False, _across)):
        pass


def _across(rows: Tensor, weight: Tensor) -> _Array:
    """Pack some rows of V as the right-hand side of a product with columns."""
    across = rows.detach().mT
    if by_matrix_unit(weight.dtype, float64=False):
        return packed_terms(across.contiguous().numpy(), _TERMS, unit.SIDE)
    return packed(across, float64=False)


@specialized
def _kernel(layout: FloatFormat, stochastic: bool) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def subtract_product(weight, left, middle, right, columns, rank, pitch, mixed_seed, first):
        """`left` [rows, r_u], `middle` [r_u, rank] and `right` [rank, columns], the latter two packed.

        Random bits are those of the coordinates first + row · pitch + column.
        """
        codes, row_step, column_step = weight
        factor = np.zeros(ROWS * rounded_up(rank, _WIDTH), np.float32)
        terms = np.empty(_TERMS * factor.size, np.uint16)
        block = np.empty(ROWS * _COLUMNS, np.float32)
        change = np.empty(_COLUMNS, np.float32)
        noise = np.empty(_COLUMNS, np.uint32)
        for i in range(0, left.shape[0], ROWS):
            rows = min(ROWS, left.shape[0] - i)
            _multiply_left(left[i : i + rows], middle, factor)
            unit.split_rows(factor, terms)
            for j in range(0, columns, _COLUMNS):
                count = min(_COLUMNS, columns - j)
                if column_step == 1:
                    _prefetch_rows(codes, i * row_step + j, row_step, rows, count)
                _multiply_columns(factor, terms, rank, right, columns, j, count, rows, block)
                for k in range(rows):
                    start = (i + k) * row_step + j * column_step
                    whole = 0
                    if not stochastic and column_step == 1 and exponent == 8 and mantissa == 7:
                        whole = count // LANES * LANES
                        subtract_rounded(codes, start, block, k * _COLUMNS, whole)
                    if whole == count:
                        continue
                    if stochastic:
                        draw(noise[:count], mixed_seed, first + np.uint64((i + k) * pitch + j))
                    change = block[k * _COLUMNS + whole : k * _COLUMNS + count]
                    target, step = codes[start + whole * column_step :], column_step
                    if column_step == 1:
                        target, step = target[: count - whole], 1
                    _subtract(target, step, change, noise, exponent, mantissa, overflow, nan, stochastic)

    return subtract_product


@jit
def _prefetch_rows(codes, start, row, rows, count):
    """Fetch what will be written: computing what will hides the wait."""
    for k in range(rows):
        for j in range(0, count, 64 // codes.itemsize):
            prefetch(codes, start + k * row + j)


@jit
def _multiply_left(left, middle, factor):
    """The first rows of `factor` [ROWS, panels · width] = left · middle, `middle` being packed."""
    rows, depth = left.shape
    panels = factor.size // (ROWS * _WIDTH)
    inner = np.zeros((ROWS, depth), np.float32)
    inner[:rows] = left
    product = np.zeros((panels, ROWS, _WIDTH), np.float32)
    flat = product.reshape(-1)
    multiply(inner.reshape(-1), 0, depth, 1, rows, middle, 0, depth * _WIDTH, depth, flat, 0, ROWS, panels)
    for k in range(ROWS):
        for p in range(panels):
            for l in range(_WIDTH):
                factor[(k * panels + p) * _WIDTH + l] = product[p, k, l]


def _multiply_columns(factor, terms, rank, right, columns, j, count, rows, block):
    """The first columns of `block` [ROWS, _COLUMNS] = the factor's rows · columns j ... j + count of `right`."""
    raise NotImplementedError("compiled only")


@overload(_multiply_columns)
def _overload_multiply_columns(factor, terms, rank, right, columns, j, count, rows, block):
    return _multiply_by_unit if right.dtype == types.uint16 else _multiply_by_vectors


def _multiply_by_unit(factor, terms, rank, right, columns, j, count, rows, block):
    side = unit.SIDE
    depth = factor.size // ROWS
    step = rounded_up(columns, side) * depth
    amx_cpu.configure(amx_cpu.CONFIGURATION)
    for l in range(0, count, side):
        for i in range(0, rows, side):
            a_here, b_here, c_here = i * depth, (j + l) * depth, i * _COLUMNS + l
            unit.write_product_of_two(
                terms, a_here, depth, factor.size, right, b_here, step, block, c_here, _COLUMNS, depth
            )
    amx_cpu.release()


def _multiply_by_vectors(factor, terms, rank, right, columns, j, count, rows, block):
    pitch = factor.size // ROWS
    panel = np.empty(ROWS * _WIDTH, np.float32)
    for l in range(0, count, _WIDTH):
        panel[:] = 0
        multiply(factor, 0, pitch, 1, rows, right, (j + l) * rank, 0, rank, panel, 0, ROWS, 1)
        for k in range(rows):
            source, target = panel[k * _WIDTH : (k + 1) * _WIDTH], block[k * _COLUMNS + l : k * _COLUMNS + l + _WIDTH]
            for m in range(_WIDTH):
                target[m] = source[m]


@inlined
def _subtract(codes, step, change, noise, exponent, mantissa, overflow, nan, stochastic):
    """Subtract `change` from the codes at 0, step, 2 · step, ..."""
    for k in range(change.size):
        code = codes[k * step]
        if codes.itemsize == 8:
            codes[k * step] = result_bits64(np.uint64(code).view(np.float64) - np.float64(change[k]))
        else:
            difference = widen(code, exponent, mantissa) - change[k]
            if stochastic:
                codes[k * step] = round_drawn(difference, (exponent, mantissa, overflow, nan), noise[k])
            else:
                codes[k * step] = round_nearest(difference, (exponent, mantissa, overflow, nan))
