"""The explicit form on the matrix unit of x86 processors: what `explicit_cpu` does, by products of bfloat16 numbers.

The slab is [sample, entry of the block]: of each tile of 32 x 32 entries the quarters, behind each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rlforget_kernels.common.amx_cpu import CONFIGURATION, configure, release
from rlforget_kernels.common.bfloat16_terms_cpu import (
    SPAN,
    STRIP,
    TERMS,
    TERMS_OF,
    TILE_WORDS,
    interleave_bfloat16,
    interleave_float16,
    interleave_float32,
    split_rows,
    transpose_tiles,
)
from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.memory_cpu import LINE, prefetch
from rlforget_kernels.common.operands_cpu import DEPTH, FORMATS, SIDE, TILE, prefetch_positions
from rlforget_kernels.common.scratch import own
from rlforget_kernels.gradient_gram.positions_cpu import Positions
from rlforget_kernels.gradient_gram.registers_cpu import Slab
from rlforget_kernels.gradient_gram.unit_products import ROWS, STEPS, add_terms, form_terms

POSITIONS = 512
"""That are multiplied at a time: their operands stay in a core's cache."""
MARGIN = 256
"""Entries of a sample's row that are not used: rows a power of two apart would meet in few lines of the caches."""

_OPERAND = TERMS * STEPS * STRIP
_TILES = _OPERAND // TILE_WORDS
_ROW = 16
_GROUPS = SIDE // ROWS


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
    """See `registers_cpu.form`; the slab is [sample, entry of the block]."""
    x, y = side.inputs, side.gradients
    terms = (TERMS_OF[FORMATS[x.dtype]], TERMS_OF[FORMATS[y.dtype]])
    strip = POSITIONS // SPAN * STRIP
    counts = (block[0] * terms[1], *terms)
    room = [_words(name, count * strip) for name, count in zip(("left", "right", "spare"), counts, strict=True)]
    edges = tuple((np.empty(2 * SPAN, factor.flat.dtype), np.array([0, SPAN])) for factor in (x, y))
    values = (x.values, corner[1], y.values, corner[0])
    _form(*values, side.starts, a, stop, *block, first, slab, slab.size // samples, *room, terms, edges)


def add(
    slab: Slab, samples: int, span: tuple[int, int, int, int, bool], start: int, end: int, tiles: npt.NDArray[Any]
) -> None:
    """See `registers_cpu.add`."""
    work = _words("operands", (2 * (span[1] - span[0]) + 3) * _OPERAND)
    _add(slab, slab.size // samples, *span, start, end, tiles, work)


def _words(name: str, count: int) -> npt.NDArray[np.uint32]:
    """Lend the calling thread room for words."""
    return own(name, count).view(np.uint32)


@jit
def _form(x, i, y, o, starts, a, stop, tiles, panels, first, slab, row, left, right, spare, terms, edges):
    """Write `tiles` x `panels` tiles of the gradients of the samples from `a` to `stop` to rows of the slab."""
    configure(CONFIGURATION)
    for sample in range(a, stop):
        p, end = starts[sample], starts[sample + 1]
        more = False
        while p < end or not more:
            count = min(POSITIONS, end - p)
            steps = max(1, -(-count // SPAN))
            for tile in range(tiles):
                _pack(y, p, count, steps, o + tile * SIDE, terms[1], spare, edges[1])
                transpose_tiles(spare, 0, left, tile * steps * terms[1] * STRIP, 2 * steps * terms[1])
            ahead = p + count
            share = -(-count // (panels * tiles))  # of the next positions, fetched while these are multiplied
            place = (first + sample) * row
            for panel in range(panels):
                _pack(x, p, count, steps, i + panel * SIDE, terms[0], right, edges[0])
                for tile in range(tiles):
                    prefetch_positions(x, ahead, share, i, panels * SIDE)
                    prefetch_positions(y, ahead, share, o, tiles * SIDE)
                    ahead += share
                    one = tile * steps * terms[1] * STRIP
                    form_terms(left, one, terms[1], right, 0, terms[0], steps, slab, place, more)
                    place += TILE
            p += count
            more = True
    release()


@jit
def _pack(values, first, count, steps, feature, terms, out, edge):
    """Make tiles [step, term, half] of 32 features of some positions, zero where there are none."""
    flat, offsets, width, form = values
    rows, pairs = edge
    whole = count // 2 if feature + SPAN <= width else 0
    _interleave(form, flat, offsets, first, whole, feature, out, 0)
    for pair in range(whole, SPAN // 2 * steps):
        rows[:] = 0
        for row in range(max(0, min(2, count - 2 * pair))):
            start = offsets[first + 2 * pair + row] + feature
            for f in range(max(0, min(SPAN, width - feature))):
                rows[row * SPAN + f] = flat[start + f]
        _interleave(form, rows, pairs, 0, 1, 0, out, pair // _ROW * terms * STRIP + pair % _ROW * _ROW)


@jit
def _interleave(form, flat, offsets, first, pairs, feature, out, start):
    if form == 0:
        interleave_float32(flat, offsets, first, pairs, feature, out, start)
    elif form == 1:
        interleave_bfloat16(flat, offsets, first, pairs, feature, out, start)
    else:
        interleave_float16(flat, offsets, first, pairs, feature, out, start)


@jit
def _add(slab, row, first, stop, offset, panels, symmetric, start, end, tiles, work):
    """Add to `tiles` the products of the samples of some tiles with those of the panels, over some chunks.

    Operands of what comes next, the following panel's and the following chunk's left ones, are made beside the
    products, as far as there are enough of these.
    """
    met, rows = min(panels, stop) if symmetric else panels, (stop - first) * SIDE
    left, next_left, spare = 0, (stop - first) * _OPERAND, 2 * (stop - first) * _OPERAND
    right, next_right = spare + _OPERAND, spare + 2 * _OPERAND
    for done in range(0, rows, ROWS):
        _split(slab, (first * SIDE + done) * row + start * DEPTH, row, work, left + _place(done))
    configure(CONFIGURATION)
    for chunk in range(start, end):
        done = 0 if chunk + 1 < end else rows  # of the next chunk's rows
        for panel in range(-1, met):
            # Of the next panel: how many groups of rows are not split, in `left` or in `spare`.
            held = symmetric and panel + 1 >= first
            missing = 0 if held or panel + 1 == met else _GROUPS
            source = left + (panel + 1 - first) * _OPERAND if held else spare
            turned = panel + 1 == met
            rows_at = (offset + panel + 1) * SIDE * row + chunk * DEPTH
            low = max(first, panel) if symmetric else first
            for tile in range(stop if panel < 0 else low, stop):
                turning = not turned and missing == 0
                turned = turned or turning
                splitting = True
                if missing:
                    group = (_GROUPS - missing) * ROWS
                    from_row, to_row = rows_at + group * row, spare + _place(group)
                    missing -= 1
                elif done < rows:
                    from_row = (first * SIDE + done) * row + (chunk + 1) * DEPTH
                    to_row = next_left + _place(done)
                    done += ROWS
                else:
                    splitting, from_row, to_row = False, 0, 0
                a, c = left + (tile - first) * _OPERAND, ((tile - first) * panels + panel) * TILE
                jobs = (turning, work, source, work, next_right, splitting, slab, from_row, row, work, to_row)
                add_terms(work, a, work, right, tiles, c, *jobs)
            for group in range((_GROUPS - missing) * ROWS, SIDE, ROWS):
                _split(slab, rows_at + group * row, row, work, spare + _place(group))
            if not turned:
                transpose_tiles(work, source, work, next_right, _TILES)
            right, next_right = next_right, right
        for group in range(done, rows, ROWS):
            _split(slab, (first * SIDE + group) * row + (chunk + 1) * DEPTH, row, work, next_left + _place(group))
        left, next_left = next_left, left
    release()


@jit
def _split(slab, start, row, work, place):
    """Make `ROWS` rows of a left operand of samples' gradients in the slab."""
    for sample in range(ROWS):
        line = start + (sample + ROWS) * row
        for k in range(line, min(line + DEPTH, slab.size), LINE):
            prefetch(slab, k)
    split_rows(slab, start, row, ROWS, STEPS, work, place)


@jit
def _place(row):
    """Where a row of left operands behind each other is."""
    return row // SIDE * _OPERAND + row % SIDE // _ROW * TILE_WORDS + row % _ROW * _ROW
