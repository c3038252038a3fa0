"""The pairwise form: two products of positions, multiplied and summed over each pair of samples, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.operands_cpu import (
    DEPTH,
    SIDE,
    TILE,
    by_matrix_unit,
    fill_rows,
    floats,
    left_of_rows,
    multiply,
    place,
    right_of_rows,
    room,
)
from rlforget_kernels.common.threads import in_order
from rlforget_kernels.gradient_gram.positions_cpu import Features, Positions

_SPAN = 256  # positions a side whose products are held


def gram(sides: tuple[Positions, ...]) -> Tensor:
    """Return the Gram matrix of one side's samples, of which the lower half counts, or that of two sides; float64.

    The first side may be of tokens.
    """
    first, last = sides[0], sides[-1]
    sums = torch.zeros(first.samples, last.samples, dtype=torch.float64)
    target = sums.numpy()
    tasks = [
        (rows, columns) for rows in _runs(first) for columns in _runs(last) if len(sides) == 2 or columns[0] <= rows[0]
    ]
    units = (
        by_matrix_unit(first.inputs.dtype, last.inputs.dtype),
        by_matrix_unit(first.gradients.dtype, last.gradients.dtype),
    )
    x_values = first.inputs.values if first.inputs.dtype.is_floating_point else None
    tokens = _tokens(first.inputs) if x_values is None else np.empty(0, np.int64)
    x, y = (last.inputs.values if x_values is None else x_values), first.gradients.values

    def work(task: tuple[tuple[int, int], tuple[int, int]]) -> None:
        tiles = _SPAN // SIDE
        products = (floats(tiles * tiles * TILE), floats(tiles * tiles * TILE))
        operands = (floats(_SPAN * DEPTH), room(tiles), room(1), room(1))
        left = (x, y, first.starts, *task[0])
        right = (last.inputs.values, last.gradients.values, last.starts, *task[1])
        _add(units, tokens, left, right, target, products, operands)

    for _ in in_order(work, tasks):
        pass
    return sums


def _runs(side: Positions) -> Iterator[tuple[int, int]]:
    """Yield runs of samples, each with no more positions than a span has, or of one sample."""
    start = 0
    for stop in range(1, side.samples + 1):
        if stop == side.samples or side.starts[stop + 1] - side.starts[start] > _SPAN:
            yield start, stop
            start = stop


def _tokens(inputs: Features) -> np.ndarray[Any, np.dtype[np.int64]]:
    return inputs.flat[inputs.offsets].astype(np.int64)


@jit
def _add(units, tokens, left, right, target, products, operands):
    """Add the inner products of the gradients of some samples with those of others to `target`."""
    x, y, starts, a, a_stop = left
    other_x, other_y, other_starts, b_first, b_stop = right
    for i in range(starts[a], starts[a_stop], _SPAN):
        rows = min(_SPAN, starts[a_stop] - i)
        while starts[a + 1] <= i:
            a += 1
        b = b_first
        for j in range(other_starts[b], other_starts[b_stop], _SPAN):
            columns = min(_SPAN, other_starts[b_stop] - j)
            while other_starts[b + 1] <= j:
                b += 1
            if tokens.size:
                _choose(tokens[i : i + rows], other_x, j, columns, products[0], operands[0])
            else:
                _multiply_positions(units[0], x, i, rows, other_x, j, columns, products[0], operands)
            _multiply_positions(units[1], y, i, rows, other_y, j, columns, products[1], operands)
            _sum(units, products, starts, a, i, rows, other_starts, b, j, columns, target)


@jit
def _multiply_positions(unit, values, i, rows, other, j, columns, out, operands):
    """Write the inner products of `rows` positions from i on with `columns` from j on, in tiles."""
    held, left, right, spare = operands
    tiles, panels = -(-rows // SIDE), -(-columns // SIDE)
    out[: tiles * panels * TILE] = 0
    for feature in range(0, values[2], DEPTH):
        depth = min(DEPTH, -(-(values[2] - feature) // SIDE) * SIDE)
        fill_rows(values, i, rows, tiles * SIDE, feature, held, depth)
        for tile in range(tiles):
            left_of_rows(unit, held, tile * SIDE * depth, depth, depth, left, tile)
        fill_rows(other, j, columns, panels * SIDE, feature, held, depth)
        for panel in range(panels):
            right_of_rows(unit, held, panel * SIDE * depth, depth, depth, right, 0, spare)
            for tile in range(tiles):
                multiply(unit, left, tile, right, 0, out, (tile * panels + panel) * TILE, depth)


@jit
def _choose(tokens, other, j, columns, out, held):
    """The same of tokens, as one-hot rows, with positions: the token's feature of each."""
    panels = -(-columns // SIDE)
    for row in range(tokens.size):
        for column in range(columns):
            fill_rows(other, j + column, 1, 1, tokens[row], held, 1)
            out[((row // SIDE) * panels + column // SIDE) * TILE + place(False, row % SIDE, column % SIDE)] = held[0]


@jit
def _sum(units, products, starts, a, i, rows, other_starts, b, j, columns, target):
    """Multiply the two products; the first of the rows is a position of sample a, the first column one of b."""
    sums = np.zeros(columns)
    panels = -(-columns // SIDE)
    for row in range(rows):
        while starts[a + 1] <= i + row:
            a += 1
        for column in range(columns):
            tile = ((row // SIDE) * panels + column // SIDE) * TILE
            x = products[0][tile + place(units[0], row % SIDE, column % SIDE)]
            y = products[1][tile + place(units[1], row % SIDE, column % SIDE)]
            sums[column] += np.float64(x) * np.float64(y)
        if row == rows - 1 or starts[a + 1] == i + row + 1:
            sample = b
            for column in range(columns):
                while other_starts[sample + 1] <= j + column:
                    sample += 1
                target[a, sample] += sums[column]
                sums[column] = 0
