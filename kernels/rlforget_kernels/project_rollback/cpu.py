"""The second half of `project_rollback_` with numba: blocks of the correction in a core's cache, subtracted there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.cpu_math import draw, inlined, jit, round_drawn, round_nearest, specialized, widen
from rlforget_kernels.common.delta_blocks_cpu import ROWS, matrix, multiply, packed, width
from rlforget_kernels.common.delta_parts_cpu import Part, parts
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.rounding import FLOAT_FORMAT, FloatFormat
from rlforget_kernels.common.threads import in_order

_WIDTH = width(float64=False)
_BLOCK = 8  # panels of columns that are computed at a time: with ROWS, 128 KiB


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

    def work(part: Part) -> None:
        k, columns = part.k, weights[part.k].shape[1]
        rows = slice(part.rows.start, part.rows.stop)
        view = matrix(weights[k][rows, part.columns.start : part.columns.stop])
        codes = view._replace(flat=view.flat.view(f"u{weights[k].element_size()}"))
        left = u[k].detach()[rows].contiguous().numpy()
        first = (offsets[k] + rows.start * columns + part.columns.start) % 2**64
        layout = FLOAT_FORMAT.get(weights[k].dtype, FLOAT_FORMAT[torch.float32])
        kernel = _kernel(layout, seed is not None and weights[k].element_size() < 4)
        sizes = (len(part.columns), v[k].shape[1], columns)
        kernel(codes, left, middles[k], part.factor.take(), *sizes, mixed_seed, np.uint64(first))

    cut = parts(weights, v, float64=False, across=True)
    for _ in in_order(work, cut):
        pass


@specialized
def _kernel(layout: FloatFormat, stochastic: bool) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def subtract_product(weight, left, middle, right, columns, rank, pitch, mixed_seed, first):
        """`left` [rows, r_u], `middle` [r_u, rank] and `right` [rank, columns], the latter two packed.

        Random bits are those of the coordinates first + row · pitch + column.
        """
        codes, row_step, column_step = weight
        panels = -(-columns // _WIDTH)
        factor = np.zeros((ROWS, -(-rank // _WIDTH) * _WIDTH), np.float32)
        block = np.zeros(_BLOCK * ROWS * _WIDTH, np.float32)
        row = np.zeros(_BLOCK * _WIDTH, np.float32)
        noise = np.zeros(_BLOCK * _WIDTH, np.uint32)
        for i in range(0, left.shape[0], ROWS):
            rows = min(ROWS, left.shape[0] - i)
            _multiply_left(left[i : i + rows], middle, factor)
            for begin in range(0, panels, _BLOCK):
                count = min(_BLOCK, panels - begin)
                here = block[: count * ROWS * _WIDTH]
                here[:] = 0
                b_start, a_row = begin * rank * _WIDTH, factor.shape[1]
                multiply(factor.reshape(-1), 0, a_row, 1, rows, right, b_start, rank * _WIDTH, rank, here, ROWS)
                j = begin * _WIDTH
                change = row[: min(count * _WIDTH, columns - j)]
                for k in range(rows):
                    for panel in range(count):
                        for l in range(_WIDTH):
                            row[panel * _WIDTH + l] = here[(panel * ROWS + k) * _WIDTH + l]
                    if stochastic:
                        draw(noise[: change.size], mixed_seed, first + np.uint64((i + k) * pitch + j))
                    place = (i + k) * row_step + j * column_step
                    target, step = codes[place:], column_step
                    if column_step == 1:
                        target, step = target[: change.size], 1
                    _subtract(target, step, change, noise, exponent, mantissa, overflow, nan, stochastic)

    return subtract_product


@jit
def _multiply_left(left, middle, factor):
    """The first rows of `factor` = left · middle, `middle` being packed."""
    rows, depth = left.shape
    inner = np.zeros((ROWS, depth), np.float32)
    inner[:rows] = left
    product = np.zeros((factor.shape[1] // _WIDTH, ROWS, _WIDTH), np.float32)
    multiply(inner.reshape(-1), 0, depth, 1, rows, middle, 0, depth * _WIDTH, depth, product.reshape(-1), ROWS)
    for panel in range(product.shape[0]):
        factor[:, panel * _WIDTH : (panel + 1) * _WIDTH] = product[panel]


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
