"""The explicit form: gradients of a block of the weight, for all samples, then their Gram matrix; block after block.

What multiplies is the matrix unit (`unit_cpu`) where the processor has one, and vector registers elsewhere
(`registers_cpu`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.operands_cpu import DEPTH, SIDE, TILE, width_of
from rlforget_kernels.common.scratch import borrowed, own
from rlforget_kernels.common.threads import in_order
from rlforget_kernels.gradient_gram import registers_cpu, unit_cpu
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
        """Parts of the block, as long as an operand is deep."""
        return self.rows * self.columns * TILE // DEPTH


def gram(sides: tuple[Positions, ...]) -> Tensor:
    """Return the Gram matrix of one side's samples, of which the lower half counts, or that of two sides; float64."""
    first, last = sides[0], sides[-1]
    tiles = [-(-side.samples // SIDE) for side in sides]
    block = _block(first.gradients.width, first.inputs.width, sum(tiles) * SIDE)
    shape = (first.samples, last.samples)
    lanes = max(1, min(_LANES, _SUMS // max(1, math.prod(shape)), block.chunks))
    sums = torch.zeros(lanes, *shape, dtype=torch.float64)
    by_unit = amx_cpu.available()
    with borrowed() as memory:
        start = -memory.ctypes.data % 64  # at a cache line: vectors that cross lines are slow
        entries = block.chunks * DEPTH + (unit_cpu.MARGIN if by_unit else 0)
        slab = memory[start : start + 4 * sum(tiles) * SIDE * entries].view(np.float32)
        slab[:] = 0  # where samples only fill up a tile
        forming = _Forming(sides, tiles, block, slab, by_unit=by_unit)
        summing = _Summing(tiles, block, slab, sums.numpy(), symmetric=len(sides) == 1, by_unit=by_unit)
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

    def cost(block: _Block) -> tuple[float, int]:
        tiles = -(-rows // block.rows) * block.rows * -(-columns // block.columns) * block.columns  # padding counts
        # To lay out a tile's inputs and gradients takes about as long as to multiply a tile, or less. They are laid out
        # once for a row or a column of tiles.
        return tiles * (1 + 1 / block.rows + 1 / block.columns), -block.rows  # of equals, the tallest

    return min(blocks, key=cost)


def _even(length: int, most: int) -> int:
    """Return the length of equal parts that `length` is cut into, each no longer than `most`."""
    return -(-length // -(-length // most))


class _Forming:
    """Writes the gradients of a block of the weight to the slab."""

    def __init__(
        self, sides: tuple[Positions, ...], tiles: list[int], block: _Block, slab: npt.NDArray[Any], *, by_unit: bool
    ) -> None:
        self._block, self._slab, self._samples = block, slab, sum(tiles) * SIDE
        self._form = unit_cpu.form if by_unit else registers_cpu.form
        firsts = [0, tiles[0] * SIDE]
        self._tasks = [
            (side, firsts[number], a, min(a + _SAMPLES, side.samples))
            for number, side in enumerate(sides)
            for a in range(0, side.samples, _SAMPLES)
        ]

    def run(self, o: int, i: int) -> None:
        """Form the block from output feature o and input feature i on."""

        def work(task: tuple[Positions, int, int, int]) -> None:
            self._form(*task, (o, i), self._block, self._slab, self._samples)

        for _ in in_order(work, self._tasks):
            pass


class _Summing:
    """Adds the Gram matrix of the gradients in the slab to partial sums, each over entries of its own."""

    def __init__(
        self,
        tiles: list[int],
        block: _Block,
        slab: npt.NDArray[Any],
        sums: npt.NDArray[Any],
        *,
        symmetric: bool,
        by_unit: bool,
    ) -> None:
        self._slab, self._sums, self._all = slab, sums, sum(tiles)
        self._panels = (0 if symmetric else tiles[0], tiles[-1])
        self._symmetric = symmetric
        self._add = unit_cpu.add if by_unit else registers_cpu.add
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
        tiles = own("tiles", (stop - first) * self._panels[1] * TILE)
        span = (first, stop, *self._panels, self._symmetric)
        for chunk in range(start, end, _CHAIN):
            tiles[:] = 0
            self._add(self._slab, self._all * SIDE, span, chunk, min(chunk + _CHAIN, end), tiles)
            _flush(tiles, first, stop, self._panels[1], self._symmetric, self._sums[lane])


@jit
def _flush(tiles, first, stop, panels, symmetric, target):
    """Add the tiles' sums to `target`, row by row."""
    width, flat = width_of(False), target.reshape(-1)
    for tile in range(first, stop):
        for i in range(min(SIDE, target.shape[0] - tile * SIDE)):
            for strip in range((tile + 1 if symmetric else panels) * SIDE // width):
                column = strip * width
                start = np.uint64(((tile - first) * panels * SIDE + column) * SIDE + i * width)
                out = np.uint64((tile * SIDE + i) * target.shape[1] + column)
                for j in range(np.uint64(max(0, min(width, target.shape[1] - column)))):
                    flat[out + j] += np.float64(tiles[start + j])
