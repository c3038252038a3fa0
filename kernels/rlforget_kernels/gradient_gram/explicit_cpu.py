"""The explicit form: gradients of a block of the weight, for all samples, then their Gram matrix; block after block."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.memory_cpu import LINE, prefetch, write_line
from rlforget_kernels.common.operands_cpu import (
    DEPTH,
    SIDE,
    TILE,
    by_matrix_unit,
    fill_strips,
    floats,
    left_of_strips,
    multiply,
    prefetch_positions,
    right_of_rows,
    right_of_strips,
    room,
    width_of,
)
from rlforget_kernels.common.scratch import borrowed
from rlforget_kernels.common.threads import in_order
from rlforget_kernels.gradient_gram.positions_cpu import Positions

_SLAB = 1 << 23  # entries of the gradients that are held: 32 MiB
_SUMS = 1 << 21  # entries of the partial Gram matrices: 16 MiB
_LANES = 16
_ROWS = 256  # samples whose part of the Gram matrix one task makes
_SAMPLES = 16  # samples whose gradients one task makes
_FEATURES = 512  # at most, of a block's either side: a thread's operands stay small
_CHAIN = 32  # chunks that are summed in float32, 4096 terms, before they are added to a sum in float64


class _Block(NamedTuple):
    """How much of a weight is held: rows and columns, in tiles of 32."""

    rows: int
    columns: int

    @property
    def chunks(self) -> int:
        """Parts of the block, as long as an operand is deep. The slab is [chunk, sample, DEPTH]."""
        return self.rows * self.columns * TILE // DEPTH


def gram(sides: tuple[Positions, ...]) -> Tensor:
    """Return the Gram matrix of one side's samples, of which the lower half counts, or that of two sides; float64."""
    first, last = sides[0], sides[-1]
    tiles = [-(-side.samples // SIDE) for side in sides]
    block = _block(first.gradients.width, first.inputs.width, sum(tiles) * SIDE)
    shape = (first.samples, last.samples)
    lanes = max(1, min(_LANES, _SUMS // max(1, math.prod(shape)), block.chunks))
    sums = torch.zeros(lanes, *shape, dtype=torch.float64)
    with borrowed() as memory:
        start = -memory.ctypes.data % 64  # at a cache line: vectors that cross lines are slow
        slab = memory[start : start + 4 * block.chunks * sum(tiles) * SIDE * DEPTH].view(np.float32)
        slab[:] = 0  # where samples only fill up a tile
        forming = _Forming(sides, tiles, block, slab)
        summing = _Summing(tiles, block, slab, sums.numpy(), symmetric=len(sides) == 1)
        for o in range(0, first.gradients.width, block.rows * SIDE):
            for i in range(0, first.inputs.width, block.columns * SIDE):
                forming.run(o, i)
                summing.run()
    return sums.sum(0)


def _block(out: int, fan_in: int, samples: int) -> _Block:
    """Choose a block of the weight near a square: gradients of so many samples, padding counted, fit the slab."""
    rows, columns = (-(-size // SIDE) for size in (out, fan_in))
    most = max(1, _SLAB // (samples * TILE))
    heights = {_even(rows, height) for height in range(1, min(rows, most, _FEATURES // SIDE) + 1)}
    blocks = [_Block(height, _even(columns, min(most // height, _FEATURES // SIDE))) for height in heights]
    # Inputs are read as often as there are columns of blocks, gradients as there are rows; of equals, the tallest.
    return min(blocks, key=lambda block: (1 / block.rows + 1 / block.columns, -block.rows))


def _even(length: int, most: int) -> int:
    """Return the length of equal parts that `length` is cut into, each no longer than `most`."""
    return -(-length // -(-length // most))


class _Forming:
    """Writes the gradients of a block of the weight to the slab."""

    def __init__(self, sides: tuple[Positions, ...], tiles: list[int], block: _Block, slab: np.ndarray) -> None:
        self._block, self._slab, self._samples = block, slab, sum(tiles) * SIDE
        firsts = [0, tiles[0] * SIDE]
        self._tasks = [
            (side, firsts[number], a, min(a + _SAMPLES, side.samples))
            for number, side in enumerate(sides)
            for a in range(0, side.samples, _SAMPLES)
        ]

    def run(self, o: int, i: int) -> None:
        """Form the block from output feature o and input feature i on."""
        for _ in in_order(lambda task: self._form(*task, o, i), self._tasks):
            pass

    def _form(self, side: Positions, row: int, a: int, stop: int, o: int, i: int) -> None:
        x, y, block = side.inputs, side.gradients, self._block
        strips = floats(max(block.rows, block.columns) * SIDE * DEPTH)
        sums = floats(block.rows * block.columns * TILE)
        work = (strips, room(block.rows), room(block.columns), room(1), sums)
        unit = by_matrix_unit(x.dtype, y.dtype)
        place = (row, self._samples, self._slab)
        _form_gradients(unit, x.values, i, y.values, o, side.starts, a, stop, *block, *place, *work)


@jit
def _form_gradients(
    unit, x, i, y, o, starts, a, stop, tiles, panels, first, samples, slab, strips, left, right, spare, sums
):
    """Write `tiles` x `panels` tiles of the gradients of the samples from `a` to `stop` to the slab."""
    width = width_of(unit)
    for sample in range(a, stop):
        sums[:] = 0
        for p in range(starts[sample], starts[sample + 1], DEPTH):
            count = min(DEPTH, starts[sample + 1] - p)
            depth = -(-count // SIDE) * SIDE
            fill_strips(y, p, count, depth, o, strips, tiles * SIDE // width, width)
            for tile in range(tiles):
                left_of_strips(unit, strips, tile, depth, left, spare)
            fill_strips(x, p, count, depth, i, strips if unit else right, panels * SIDE // width, width)
            share = -(-DEPTH // (panels * tiles))  # of the next positions, fetched while these are multiplied
            for panel in range(panels):
                right_of_strips(unit, strips, panel, depth, right)
                for tile in range(tiles):
                    ahead = p + count + (panel * tiles + tile) * share
                    prefetch_positions(x, ahead, share, i, panels * SIDE)
                    prefetch_positions(y, ahead, share, o, tiles * SIDE)
                    multiply(unit, left, tile, right, panel, sums, (tile * panels + panel) * TILE, depth)
        for chunk in range(tiles * panels * TILE // DEPTH):
            start = (chunk * samples + first + sample) * DEPTH
            for k in range(0, DEPTH, LINE):
                write_line(sums, chunk * DEPTH + k, slab, start + k)


class _Summing:
    """Adds the Gram matrix of the gradients in the slab to partial sums, each over entries of its own."""

    def __init__(self, tiles: list[int], block: _Block, slab: np.ndarray, sums: np.ndarray, *, symmetric: bool) -> None:
        self._slab, self._sums, self._all = slab, sums, sum(tiles)
        self._panels = (0 if symmetric else tiles[0], tiles[-1])
        self._symmetric = symmetric
        step, lanes = _ROWS // SIDE, len(sums)
        length = -(-block.chunks // lanes)
        self._tasks = [
            (lane, first, min(first + step, tiles[0]), lane * length, min((lane + 1) * length, block.chunks))
            for lane in range(lanes)
            for first in range(0, tiles[0], step)
        ]

    def run(self) -> None:
        """Add what the slab holds now."""
        for _ in in_order(lambda task: self._sum(*task), self._tasks):
            pass

    def _sum(self, lane: int, first: int, stop: int, start: int, end: int) -> None:
        work = (floats((stop - first) * self._panels[1] * TILE), room(1), room(1))
        span = (first, stop, *self._panels, self._symmetric)
        _add_gram(self._slab, self._all, *span, start, end, self._sums[lane], *work)


@jit
def _add_gram(slab, all_tiles, first, stop, offset, panels, symmetric, start, end, target, tiles, right, spare):
    """Add to `target` the products of the samples of some tiles with those of the panels, over some chunks."""
    tiles[:] = 0
    for chunk in range(start, end):
        rows = chunk * all_tiles  # the samples' rows are left operands as they are
        for panel in range(min(panels, stop) if symmetric else panels):
            right_of_rows(False, slab, (rows + offset + panel) * SIDE * DEPTH, DEPTH, DEPTH, right, 0, spare)
            low = max(first, panel) if symmetric else first
            ahead = (rows + all_tiles + offset + panel) * SIDE * DEPTH  # of the next chunk, where there is one
            part = SIDE * DEPTH // (stop - low)
            for tile in range(low, stop):
                fetched = ahead + (tile - low) * part
                for line in range(fetched, min(fetched + part, slab.size), LINE):
                    prefetch(slab, line)
                multiply(False, slab, rows + tile, right, 0, tiles, ((tile - first) * panels + panel) * TILE, DEPTH)
        if (chunk + 1 - start) % _CHAIN == 0:
            _flush(tiles, first, stop, panels, symmetric, target)
    _flush(tiles, first, stop, panels, symmetric, target)


@jit
def _flush(tiles, first, stop, panels, symmetric, target):
    """Move the tiles' sums to `target`, strip by strip."""
    width = width_of(False)
    for tile in range(first, stop):
        for strip in range((tile + 1 if symmetric else panels) * SIDE // width):
            column = strip * width
            start = ((tile - first) * panels * SIDE + column) * SIDE
            for i in range(min(SIDE, target.shape[0] - tile * SIDE)):
                out = target[tile * SIDE + i]
                for j in range(min(width, target.shape[1] - column)):
                    out[column + j] += np.float64(tiles[start + i * width + j])
    tiles[:] = 0
