"""Products of operands of `bfloat16_terms_cpu` on the matrix unit, for numba kernels between `configure` and `release`.

Of float32 factors, in three terms each, six of the nine products of terms are taken: no more than 2**-22 of a product
is lost, and 2**-24 as a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rlforget_kernels.common.amx_cpu import Unit
from rlforget_kernels.common.bfloat16_terms_cpu import SPAN, STRIP, TERMS, TILE_WORDS, address, moved, split, transpose

STEPS = 4
"""Steps of 32 terms of a product of `add_terms`."""
ROWS = 8
"""Rows that `add_terms` splits beside its product."""

_LONG, _WORD = ir.IntType(64), ir.IntType(32)
_LINE = 64
_TILE = 4 * TILE_WORDS  # bytes
_ROW = 128  # bytes of a row of 32 float32
_FLOATS = ir.VectorType(ir.FloatType(), 16)
_QUARTERS = tuple(_TILE * quarter for quarter in range(4))
_SMALL = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 2))
"""The products of terms that count beside that of the first ones; from one to the next one operand stays."""
_READ, _TO_FIRST_CACHE, _DATA = 0, 3, 1


@intrinsic
def form_terms(typing, a, a_start, a_terms, b, b_start, b_terms, steps, c, c_start, more):
    """C[i, j] = Σ_k A[i, k] B[k, j] for 32 rows and columns and k < 32 steps; added to what is there if `more`.

    A and B are in tiles, [step, term, half], of one to three terms; C is float32, its quarters of 16 x 16 behind each
    other.
    """
    index = types.intp
    signature = types.void(a, index, index, b, index, index, index, c, index, types.boolean)

    def codegen(context, builder, signature, args):
        a, b, c = (address(context, builder, signature.args[k], args[k], args[k + 1]) for k in (0, 3, 7))
        unit, terms = Unit(builder), (args[2], args[5])
        _clear(unit)

        def tiles(step):
            return [
                moved(builder, side, builder.mul(step, count), 2 * _TILE)
                for side, count in zip((a, b), terms, strict=True)
            ]

        single = builder.icmp_unsigned("==", builder.mul(*terms), ir.Constant(_LONG, 1))
        with cgutils.for_range(builder, builder.select(single, ir.Constant(_LONG, 0), args[6])) as loop:
            for pair in _SMALL:
                there = [builder.icmp_unsigned(">", n, ir.Constant(_LONG, k)) for n, k in zip(terms, pair, strict=True)]
                with builder.if_then(builder.and_(*there)):
                    _add_step(unit, tiles(loop.index), [pair])
        with cgutils.for_range(builder, args[6]) as loop:
            _add_step(unit, tiles(loop.index), [(0, 0)])
        sums = _sums(unit, _QUARTERS, _LINE)
        with builder.if_else(args[9]) as (there, nothing):
            with there:
                _add_lines(builder, sums, c)
            with nothing:
                _write_lines(builder, sums, c)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_terms(
    typing, a, a_start, b, b_start, c, c_start, turning, d, d_start, e, e_start, splitting, s, s_start, row, t, t_start
):
    """C[i, j] += Σ_k A[i, k] B[k, j] for 32 rows and columns and k < 128, of float32 numbers in three terms.

    A and B are in tiles, [step, term, half]; C is float32, its rows of 32 behind each other. What has to be done for
    other products is done while the unit multiplies, which leaves the vector registers idle: if `turning`, the tiles
    of D are transposed to E, and if `splitting`, `ROWS` rows of S, `row` apart, become rows of the tiles T, and memory
    is asked for as many behind them.
    """
    index, flag = types.intp, types.boolean
    signature = types.void(a, index, b, index, c, index, flag, d, index, e, index, flag, s, index, index, t, index)

    def codegen(context, builder, signature, args):
        a, b, c, d, e, s, t = (
            address(context, builder, signature.args[k], args[k], args[k + 1]) for k in (0, 2, 4, 7, 9, 12, 15)
        )
        turning, splitting, row = args[6], args[11], builder.mul(args[14], ir.Constant(_LONG, 4))

        def beside(step, groups, before, group):
            with builder.if_then(turning):
                number = builder.add(builder.mul(step, ir.Constant(_LONG, groups)), ir.Constant(_LONG, before + group))
                transpose(builder, moved(builder, d, number, _TILE), moved(builder, e, number, _TILE))
            if groups == 1 or group == groups - 1:
                return
            with builder.if_then(splitting):
                for number in range(group * ROWS // (groups - 1), (group + 1) * ROWS // (groups - 1)):
                    line = builder.gep(s, [builder.mul(row, ir.Constant(_LONG, number))])
                    line = moved(builder, line, step, 4 * SPAN)
                    ahead = builder.gep(line, [builder.mul(row, ir.Constant(_LONG, ROWS))])
                    for half in range(4 * SPAN // _LINE):
                        _prefetch(builder, moved(builder, ahead, half, _LINE))
                    split(builder, line, moved(builder, moved(builder, t, number, _LINE), step, 4 * TERMS * STRIP))

        unit = Unit(builder)
        _clear(unit)
        before = 0
        for pairs in (_SMALL, [(0, 0)]):  # the small ones first: what is added to large sums is rounded as they are
            with cgutils.for_range(builder, ir.Constant(_LONG, STEPS)) as loop:
                tiles = [moved(builder, side, loop.index, TERMS * 2 * _TILE) for side in (a, b)]
                _add_step(unit, tiles, pairs, partial(beside, loop.index, len(pairs), before))
            before += STEPS * len(pairs)
        _add_lines(builder, _sums(unit, (0, _LINE, 16 * _ROW, 16 * _ROW + _LINE), _ROW), c)
        return context.get_dummy_value()

    return signature, codegen


def _clear(unit: Unit) -> None:
    for tile in range(4):
        unit.clear(tile)


def _add_step(
    unit: Unit,
    sides: Sequence[Any],
    pairs: Sequence[tuple[int, int]],
    beside: Callable[[int], None] | None = None,
) -> None:
    """Add products of pairs of terms to the first four registers; after each, `beside` writes what else is done."""
    held: list[int | None] = [None, None]
    for number, pair in enumerate(pairs):
        for side, term in enumerate(pair):
            if held[side] == term:
                continue
            held[side] = term
            for half in range(2):
                unit.load(4 + 2 * side + half, moved(unit.builder, sides[side], 2 * term + half, _TILE), _LINE)
        for tile in range(4):
            unit.multiply(tile, 4 + tile // 2, 6 + tile % 2)
        if beside:
            beside(number)


def _sums(unit: Unit, corners: Sequence[int], row: int) -> Any:
    """Write the first four registers to memory of the function's own, and return where."""
    held = cgutils.alloca_once(unit.builder, ir.ArrayType(_FLOATS, 4 * 16))
    held.align = _LINE
    start = unit.builder.bitcast(held, ir.IntType(8).as_pointer())
    for tile, corner in enumerate(corners):
        unit.store(tile, moved(unit.builder, start, corner, 1), row)
    return start


def _add_lines(builder: Any, sums: Any, target: Any) -> None:
    """Add the sums of four registers to others."""
    for new, old in _lines(builder, sums, target):
        builder.store(builder.fadd(builder.load(old, align=4), builder.load(new, align=_LINE)), old, align=4)


def _write_lines(builder: Any, sums: Any, target: Any) -> None:
    """Write the sums of four registers past the caches, which would read what is there first and then keep it."""
    for new, old in _lines(builder, sums, target):
        store = builder.store(builder.load(new, align=_LINE), old, align=_LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_WORD, 1)]))


def _lines(builder: Any, *sides: Any) -> Iterator[list[Any]]:
    """Write a loop over the lines of four registers, in memory; yield their addresses on each side."""
    with cgutils.for_range(builder, ir.Constant(_LONG, 16)) as loop:
        for number in range(4):
            places = [moved(builder, moved(builder, side, loop.index, 4 * _LINE), number, _LINE) for side in sides]
            yield [builder.bitcast(place, _FLOATS.as_pointer()) for place in places]


def _prefetch(builder: Any, pointer: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [pointer, *(ir.Constant(_WORD, hint) for hint in (_READ, _TO_FIRST_CACHE, _DATA))])
