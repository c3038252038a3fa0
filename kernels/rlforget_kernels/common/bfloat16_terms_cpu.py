"""Operands of the matrix unit of x86 processors, for numba kernels: bfloat16 terms in tiles of 16 rows of 16 words.

A word (uint32) holds two terms that follow one another along the depth of a product, the first in its lower half. In a
left operand a row of a tile is a row of C, in a right one a column of a tile is a column of C: either is the other with
its tiles transposed. Which two of the depth share a word decides no product, so that terms are put together as it takes
no moves across lanes. A float32 is three terms, a float16 two: nothing is lost.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TERMS = 3
"""Terms of a float32."""
TERMS_OF = (TERMS, 1, 2)
"""Terms of the formats of `operands_cpu.FORMATS`: float32, bfloat16 and float16."""
SPAN = 32
"""Terms of a row of a tile."""
TILE_WORDS = 256
"""Words of a tile."""
STRIP = 2 * TILE_WORDS
"""Words of the tiles of one term of 32 rows or columns."""

_LANES = 16
_QUARTER = 4
_BYTE, _INDEX, _WORD = ir.IntType(8), ir.IntType(64), ir.IntType(32)
_WORDS = ir.VectorType(_WORD, _LANES)
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_NUMBERS = {0: ir.VectorType(ir.FloatType(), 2 * _LANES), 2: ir.VectorType(ir.HalfType(), 2 * _LANES)}
_QUARTERS = ir.VectorType(_WORD, _QUARTER)


@intrinsic
def split_rows(typing, source, start, row, count, steps, target, target_start):
    """Split `count` rows of 32 float32 a step, `row` apart: rows of tiles [step, term, half] of `target` (uint32)."""
    index = types.intp
    signature = types.void(source, index, index, index, index, target, index)

    def codegen(context, builder, signature, args):
        begin = address(context, builder, signature.args[0], args[0], args[1])
        out = address(context, builder, signature.args[5], args[5], args[6])
        with cgutils.for_range(builder, args[3]) as rows:
            line = builder.gep(begin, [builder.mul(rows.index, builder.shl(args[2], ir.Constant(_INDEX, 2)))])
            half = builder.lshr(rows.index, ir.Constant(_INDEX, 4))
            there = moved(
                builder,
                moved(builder, out, half, 4 * TILE_WORDS),
                builder.and_(rows.index, ir.Constant(_INDEX, 15)),
                4 * _LANES,
            )
            with cgutils.for_range(builder, args[4]) as loop:
                split(
                    builder,
                    moved(builder, line, loop.index, 4 * SPAN),
                    moved(builder, there, loop.index, 4 * TERMS * STRIP),
                )
        return context.get_dummy_value()

    return signature, codegen


def _interleaving(form: int) -> Any:
    """Make an intrinsic that puts rows of a float format together."""

    @intrinsic
    def interleave(typing, flat, offsets, first, pairs, feature, target, start):
        """Put 32 numbers of rows together, two and two: rows of tiles [step, term, half] of `target` (uint32).

        Row r starts at flat[offsets[first + r] + feature], bits. Columns 0, 2, ... go to the first half of the tiles
        and 1, 3, ... to the other.
        """
        index = types.intp
        signature = types.void(flat, offsets, index, index, index, target, index)

        def codegen(context, builder, signature, args):
            begin = address(context, builder, signature.args[0], args[0], args[4])
            where = address(context, builder, signature.args[1], args[1], args[2])
            out = address(context, builder, signature.args[5], args[5], args[6])
            with cgutils.for_range(builder, args[3]) as loop:
                rows = []
                for row in range(2):
                    place = moved(builder, moved(builder, where, loop.index, 16), row, 8)
                    offset = builder.load(builder.bitcast(place, _INDEX.as_pointer()))
                    rows.append(_columns(builder, moved(builder, begin, offset, 2 if form else 4), form))
                step = builder.lshr(loop.index, ir.Constant(_INDEX, 4))
                there = moved(builder, out, step, 4 * TERMS_OF[form] * STRIP)
                there = moved(builder, there, builder.and_(loop.index, ir.Constant(_INDEX, 15)), 4 * _LANES)
                for half in range(2):
                    for term, pair in enumerate(zip(rows[0][half], rows[1][half], strict=True)):
                        place = moved(builder, there, 2 * term + half, 4 * TILE_WORDS)
                        builder.store(_paired(builder, *pair), builder.bitcast(place, _WORDS.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return interleave


interleave_float32, interleave_bfloat16, interleave_float16 = map(_interleaving, range(3))


@intrinsic
def transpose_tiles(typing, source, start, target, target_start, count):
    """Transpose `count` tiles of `source`, behind each other, to `target` (both uint32)."""
    signature = types.void(source, types.intp, target, types.intp, types.intp)

    def codegen(context, builder, signature, args):
        begin, out = (address(context, builder, signature.args[k], args[k], args[k + 1]) for k in (0, 2))
        with cgutils.for_range(builder, args[4]) as loop:
            transpose(builder, *(moved(builder, side, loop.index, 4 * TILE_WORDS) for side in (begin, out)))
        return context.get_dummy_value()

    return signature, codegen


def address(context, builder, kind, array, index):
    """The address, in bytes, of an element of an array."""
    return builder.bitcast(
        builder.gep(context.make_array(kind)(context, builder, array).data, [index]), _BYTE.as_pointer()
    )


def moved(builder, pointer, count, size):
    """The address `count` times `size` bytes on."""
    if isinstance(count, int):
        return builder.gep(pointer, [ir.Constant(_INDEX, count * size)])
    return builder.gep(pointer, [builder.mul(count, ir.Constant(_INDEX, size))])


def split(builder, source, target):
    """Write code that splits 32 float32 into a row of tiles [term, half]."""
    halves = []
    for half in range(2):
        pointer = builder.bitcast(moved(builder, source, half, 4 * _LANES), _FLOATS.as_pointer())
        halves.append(_terms(builder, builder.load(pointer, align=4)))
    for term, pair in enumerate(zip(*halves, strict=True)):
        out = builder.bitcast(moved(builder, target, term, 4 * STRIP), _WORDS.as_pointer())
        builder.store(_paired(builder, *pair), out, align=4)


def transpose(builder, source, target):
    """Write code that transposes a tile.

    A quarter of each row is moved on its way from memory, which leaves the vector registers half the work.
    """
    for q in range(_QUARTER):
        rows = [_joined(builder, source, [(i + 4 * lane, q) for lane in range(4)]) for i in range(4)]
        for c, column in enumerate(_transposed_quarters(builder, rows)):
            out = builder.bitcast(moved(builder, target, q * _QUARTER + c, 4 * _LANES), _WORDS.as_pointer())
            builder.store(column, out, align=4)


def _joined(builder, source, places):
    """Quarters of rows, (row, quarter), one behind the other in a vector."""
    found = ir.Constant(_WORDS, ir.Undefined)
    spread = ir.Constant(ir.VectorType(_WORD, _LANES), [lane % _QUARTER for lane in range(_LANES)])
    for number, (row, quarter) in enumerate(places):
        pointer = moved(builder, source, row * _QUARTER + quarter, 4 * _QUARTER)
        part = builder.load(builder.bitcast(pointer, _QUARTERS.as_pointer()), align=4)
        wide = builder.shuffle_vector(part, ir.Constant(_QUARTERS, ir.Undefined), spread)
        lanes = [_LANES + lane if lane // _QUARTER == number else lane for lane in range(_LANES)]
        found = builder.shuffle_vector(found, wide, ir.Constant(_WORDS, lanes)) if number else wide
    return found


def _transposed_quarters(builder, rows):
    """The 4 x 4 blocks that the quarters of four vectors make, transposed."""

    def mixed(first, second, order):
        lanes = [
            _QUARTER * quarter + (lane if lane < _QUARTER else lane - _QUARTER + _LANES)
            for quarter in range(4)
            for lane in order
        ]
        return builder.shuffle_vector(first, second, ir.Constant(_WORDS, lanes))

    low, high, low_pair, high_pair = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    lows = mixed(rows[0], rows[1], low), mixed(rows[2], rows[3], low)
    highs = mixed(rows[0], rows[1], high), mixed(rows[2], rows[3], high)
    return [mixed(*pair, order) for pair in (lows, highs) for order in (low_pair, high_pair)]


def _columns(builder, pointer, form):
    """The terms of 32 numbers, in the upper halves of words: of the even ones and of the odd ones."""
    kind = _WORDS if form == 1 else _NUMBERS[form]
    found = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=2 if form else 4)
    if form == 1:
        return (builder.shl(found, _all(16)),), (found,)
    if form == 2:
        found = builder.fpext(found, _NUMBERS[0])
    sides = []
    for half in range(2):
        lanes = ir.Constant(ir.VectorType(_WORD, _LANES), [2 * lane + half for lane in range(_LANES)])
        chosen = builder.shuffle_vector(found, ir.Constant(found.type, ir.Undefined), lanes)
        sides.append(_terms(builder, chosen)[: TERMS_OF[form]])
    return sides


def _terms(builder, value):
    """The bits of float32 `value` and of what is left of it, twice: their upper halves are bfloat16 terms of it.

    The first term is cut off, so that it is finite where the number is, and the second rounded, so that what the third
    one is multiplied with has no sign in common with it. They add up to the number exactly, unless the third is less
    than a normal number.
    """
    bits = builder.bitcast(value, _WORDS)
    rest = builder.fsub(value, builder.bitcast(builder.and_(bits, _all(0xFFFF0000)), _FLOATS))
    raised = builder.add(builder.bitcast(rest, _WORDS), _all(0x8000))
    last = builder.fsub(rest, builder.bitcast(builder.and_(raised, _all(0xFFFF0000)), _FLOATS))
    return bits, raised, builder.bitcast(last, _WORDS)


def _paired(builder, first, second):
    """The upper halves of the words of two vectors, those of the first in the lower halves."""
    return builder.or_(builder.lshr(first, _all(16)), builder.and_(second, _all(0xFFFF0000)))


def _all(value):
    return ir.Constant(_WORDS, [value] * _LANES)
