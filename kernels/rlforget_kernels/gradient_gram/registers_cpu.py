"""The explicit form on vector registers: float32 products. The slab is [chunk, sample, DEPTH]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.memory_cpu import LINE, prefetch, write_line
from rlforget_kernels.common.operands_cpu import (
    DEPTH,
    SIDE,
    TILE,
    fill_pairs,
    fill_strips,
    multiply,
    multiply_lower,
    multiply_strips,
    prefetch_positions,
    right_of_rows,
    width_of,
)
from rlforget_kernels.common.products_cpu import PAIRS
from rlforget_kernels.common.scratch import own
from rlforget_kernels.gradient_gram.positions_cpu import Positions

Slab = npt.NDArray[np.float32]


def form(
    side: Positions,
    first: int,
    a: int,
    stop: int,
    corner: tuple[int, int],
    block: tuple[int, int],
    slab: Slab,
    samples: int,
) -> None:
    """Write gradients to the slab.

    Args:
        side: Where they come from.
        first: Where in the slab its sample 0 is.
        a: The first sample whose gradients are formed.
        stop: The end of these samples.
        corner: The first output feature and the first input feature of the block.
        block: Its rows and columns, in tiles.
        slab: float32 [chunk, sample, DEPTH], flat.
        samples: How many samples the slab has room for.
    """
    pairs = PAIRS and side.inputs.dtype == side.gradients.dtype == torch.bfloat16
    values = (side.inputs.values, corner[1], side.gradients.values, corner[0])
    sizes = (block[0] * SIDE * DEPTH, block[1] * SIDE * DEPTH, block[0] * block[1] * TILE)
    work = (own(name, size) for name, size in zip(("left", "right", "sums"), sizes, strict=True))
    _form(pairs, *values, side.starts, a, stop, *block, first, samples, slab, *work)


def add(
    slab: Slab, samples: int, span: tuple[int, int, int, int, bool], start: int, end: int, tiles: npt.NDArray[Any]
) -> None:
    """Add products of samples to `tiles`.

    Args:
        slab: What `form` has written.
        samples: How many samples it has room for.
        span: The first and the end of the tiles of samples that are rows; the first and the number of the panels,
            tiles as well, that are columns; and whether only panels up to the row's own count.
        start: The first chunk that counts.
        end: The end of these chunks.
        tiles: float32 [row, panel, TILE], flat.
    """
    _add(slab, samples // SIDE, *span, start, end, tiles, own("right", SIDE * DEPTH), own("spare", SIDE * DEPTH))


@jit
def _form(pairs, x, i, y, o, starts, a, stop, tiles, panels, first, samples, slab, left, right, sums):
    """Write `tiles` x `panels` tiles of the gradients of the samples from `a` to `stop` to the slab."""
    strips = SIDE // width_of(False)
    for sample in range(a, stop):
        sums[:] = 0
        for p in range(starts[sample], starts[sample + 1], DEPTH):
            count = min(DEPTH, starts[sample + 1] - p)
            depth = -(-count // SIDE) * SIDE
            if pairs:
                fill_pairs(y, p, count, depth, o, left, tiles * strips)
                fill_pairs(x, p, count, depth, i, right, panels * strips)
            else:
                fill_strips(y, p, count, depth, o, left, tiles * strips)
                fill_strips(x, p, count, depth, i, right, panels * strips)
            share = -(-DEPTH // (panels * tiles))  # of the next positions, fetched while these are multiplied
            for panel in range(panels):
                for tile in range(tiles):
                    ahead = p + count + (panel * tiles + tile) * share
                    prefetch_positions(x, ahead, share, i, panels * SIDE)
                    prefetch_positions(y, ahead, share, o, tiles * SIDE)
                    multiply_strips(pairs, left, tile, right, panel, sums, (tile * panels + panel) * TILE, depth)
        for chunk in range(tiles * panels * TILE // DEPTH):
            start = (chunk * samples + first + sample) * DEPTH
            for k in range(0, DEPTH, LINE):
                write_line(sums, chunk * DEPTH + k, slab, start + k)


@jit
def _add(slab, all_tiles, first, stop, offset, panels, symmetric, start, end, tiles, right, spare):
    """Add to `tiles` the products of the samples of some tiles with those of the panels, over some chunks."""
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
                target = ((tile - first) * panels + panel) * TILE
                if symmetric and tile == panel:
                    multiply_lower(slab, rows + tile, right, 0, tiles, target, DEPTH)
                else:
                    multiply(False, slab, rows + tile, right, 0, tiles, target, DEPTH)
