"""Differences of bfloat16 rows multiplied with narrow float32 matrices on the matrix unit of x86 processors (AMX).

The unit takes bfloat16. The difference of two neighbouring bfloat16 numbers is one, and a float32 is the sum of three
but for 2**-24 of it: three products, which share what they read on the left and what they add to. Where a difference is
no bfloat16, `split` says so, and what rounding it left is for the caller to add.

Products are for kernels that hold the tile registers, from `amx_cpu.configure` to `amx_cpu.release`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rlforget_kernels.common import rounding
from rlforget_kernels.common.amx_cpu import Unit
from rlforget_kernels.common.cpu_math import bits_of_float, float_of_bits, jit

SIDE = 32
"""Rows and columns of C that one product takes; its depth is a multiple of it."""
TERMS = 3
"""Of a float32 on the right."""
LANES = 32
"""Elements that `split` takes at a time."""

_HALF_TILE = 16  # rows of a tile register, which holds 16 rows of 64 bytes
_ROW = 128  # bytes of 32 float32, or of 32 pairs of bfloat16
_BYTE, _WORD, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_WORD, LANES // 2)
_FLOATS = ir.VectorType(ir.FloatType(), LANES // 2)
_HIGH = np.uint32(0xFFFF0000)
_HALF = np.uint32(0x8000)
_16 = np.uint32(16)
_NAN = np.uint32(rounding.NAN)


def _product(terms: list[tuple[int, int]], fresh: bool = False) -> Any:
    """What multiplies these terms of A with these of B, in this order, and adds to C or, `fresh`, writes it."""

    @intrinsic
    def product(typing, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, depth):
        """C[i, j] += Σ_(s, t) Σ_k A_s[i, k] B_t[k, j] for 32 rows, 32 columns, k < depth and all pairs of terms.

        A and B are bfloat16 codes in 1-D uint16 arrays: A_s[i, k] at a_start + s·a_step + i·a_row + k, and B_t[k, j] at
        b_start + t·b_step + 64·(k div 2) + 2·j + k mod 2. C is float32, its rows of 32 c_row apart from c_start on.
        """
        index = types.intp
        signature = types.void(a, index, index, index, b, index, index, c, index, index, index)

        def codegen(context, builder, signature, args):
            def data(position, start, size):
                array = context.make_array(signature.args[position])(context, builder, args[position])
                return unit.at(builder.bitcast(array.data, _BYTE.as_pointer()), unit.times(start, size))

            unit = Unit(builder)
            row, a_row, c_row = ir.Constant(_LONG, _ROW), unit.times(args[2], 2), unit.times(args[9], 4)
            c_tiles = data(7, args[8], 4)
            corners = [
                unit.at(unit.at(c_tiles, unit.times(c_row, _HALF_TILE * half)), 64 * side)
                for half in range(2)
                for side in range(2)
            ]
            for tile, corner in enumerate(corners):
                if fresh:
                    unit.clear(tile)
                else:
                    unit.call("tileloadd64", unit.register(tile), corner, c_row)
            with cgutils.for_range(builder, builder.udiv(args[10], ir.Constant(_LONG, SIDE))) as loop:
                loaded = -1, -1
                for a_term, b_term in terms:
                    if a_term != loaded[0]:
                        start = builder.add(args[1], unit.times(args[3], a_term))
                        a_here = unit.at(data(0, start, 2), unit.times(loop.index, 2 * SIDE))
                        for half in range(2):
                            place = unit.at(a_here, unit.times(a_row, _HALF_TILE * half))
                            unit.call("tileloadd64", unit.register(4 + half), place, a_row)
                    if b_term != loaded[1]:
                        start = builder.add(args[5], unit.times(args[6], b_term))
                        b_here = unit.at(data(4, start, 2), unit.times(loop.index, _HALF_TILE * _ROW))
                        for side in range(2):
                            unit.call("tileloadd64", unit.register(6 + side), unit.at(b_here, 64 * side), row)
                    loaded = a_term, b_term
                    for tile in range(4):
                        unit.multiply(tile, 4 + tile // 2, 6 + tile % 2)
            for tile, corner in enumerate(corners):
                unit.call("tilestored64", unit.register(tile), corner, c_row)
            return context.get_dummy_value()

        return signature, codegen

    return product


add_product = _product([(0, 2), (0, 1), (0, 0)])
"""With what a bfloat16 matrix is multiplied: a float32 one."""
add_leading_product = _product([(0, 0)])
write_product_of_two = _product([(0, 1), (0, 0), (1, 0)], fresh=True)
"""Of two float32 matrices, each but for 2**-18 of it the sum of two terms; their last terms' product is left out."""


@intrinsic
def split(typing, old, old_start, new, new_start, count, high, high_start, inexact, inexact_start, squares):
    """Round new − old, `count` (a multiple of LANES) bfloat16 codes from the starts on, to bfloat16 codes in `high`.

    `squares` (float32, LANES) += difference². Bit k mod 32 of `inexact` (uint32, one a LANES elements) tells that the
    difference at `element_of(k)` is no bfloat16 but for what rounding left of it. Returns how many are not.
    """
    index = types.intp
    signature = types.int64(old, index, new, index, index, high, index, inexact, index, squares)

    def codegen(context, builder, signature, args):
        def pointer(argument, start, kind):
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            return builder.bitcast(builder.gep(data, [start]), kind.as_pointer())

        halves = [pointer(9, ir.Constant(_LONG, half * LANES // 2), _FLOATS) for half in range(2)]
        sums = [cgutils.alloca_once_value(builder, builder.load(half, align=4)) for half in halves]
        found = cgutils.alloca_once_value(builder, ir.Constant(_WORD, 0))
        with cgutils.for_range(builder, builder.udiv(args[4], ir.Constant(_LONG, LANES))) as loop:
            j = builder.mul(loop.index, ir.Constant(_LONG, LANES))
            before, after = (
                builder.load(pointer(side, builder.add(args[side + 1], j), _WORDS), align=2) for side in (0, 2)
            )
            rounded, masks = [], []
            for half, total in enumerate(sums):
                delta = builder.fsub(_widened(builder, after, half), _widened(builder, before, half))
                builder.store(builder.fadd(builder.load(total), builder.fmul(delta, delta)), total)
                bits = builder.bitcast(delta, _WORDS)
                low = builder.icmp_unsigned("!=", builder.and_(bits, _words(0xFFFF)), _words(0))
                masks.append(builder.zext(builder.bitcast(low, ir.IntType(LANES // 2)), _WORD))
                rounded.append(builder.add(bits, _words(0x8000)))
            codes = builder.or_(builder.lshr(rounded[0], _words(16)), builder.and_(rounded[1], _words(0xFFFF0000)))
            builder.store(codes, pointer(5, builder.add(args[6], j), _WORDS), align=2)
            mask = builder.or_(masks[0], builder.shl(masks[1], ir.Constant(_WORD, LANES // 2)))
            builder.store(mask, pointer(7, builder.add(args[8], loop.index), _WORD), align=4)
            builder.store(builder.add(builder.load(found), builder.ctpop(mask)), found)
        for half, total in zip(halves, sums, strict=True):
            builder.store(builder.load(total), half, align=4)
        return builder.zext(builder.load(found), _LONG)

    return signature, codegen


@jit
def element_of(bit):
    """Which of LANES elements a bit of `split` stands for: the even ones first, for two share a word of 32 bits."""
    return 2 * bit - (LANES - 1 if bit >= LANES // 2 else 0)


@jit
def rounded(value):
    """The bits of the float32 `value` rounded to bfloat16 as by `split`, the low half zero."""
    return np.uint32(np.uint32(bits_of_float(value) + _HALF) & _HIGH) if value == value else _NAN


@jit
def pack_terms(right, depth, count, terms):
    """Split `right` [k, columns] into `count` terms, 2 or 3: flat [count, panels, depth / 2, 32] pairs along k, uint32.

    What is beyond its rows and columns is 0.
    """
    panels = -(-right.shape[1] // SIDE)
    step = panels * depth // 2 * SIDE
    for p in range(panels):
        for pair in range(depth // 2):
            start = (p * depth // 2 + pair) * SIDE
            if count == 2:
                _split_into_two(right, 2 * pair, p * SIDE, terms, start, step)
            else:
                _split_into_three(right, 2 * pair, p * SIDE, terms, start, step)


def _splitter(count: int) -> Any:
    @intrinsic
    def split_pair(typing, right, k, column, terms, start, step):
        """Write the terms of rows k and k + 1, of SIDE columns from `column` on: each from `start` on, `step` apart."""
        index = types.intp
        signature = types.void(right, index, index, terms, index, index)

        def codegen(context, builder, signature, args):
            matrix, held = (context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 3))
            rows, width = (builder.extract_value(matrix.shape, side) for side in range(2))
            lanes = LANES // 2
            mask = ir.VectorType(ir.IntType(1), lanes)
            kind = ir.FunctionType(_FLOATS, [_FLOATS.as_pointer(), _WORD, mask, _FLOATS])
            name = f"llvm.masked.load.v{lanes}f32.p0v{lanes}f32"
            loading = cgutils.get_or_insert_function(builder.module, kind, name)

            def load(row, first):
                inside = builder.icmp_signed("<", row, rows)
                left = builder.select(inside, builder.sub(width, first), ir.Constant(_LONG, 0))
                steps = ir.VectorType(_LONG, lanes)
                single = builder.insert_element(ir.Constant(steps, ir.Undefined), left, ir.Constant(_WORD, 0))
                zeros = ir.Constant(ir.VectorType(_WORD, lanes), [0] * lanes)
                spread = builder.shuffle_vector(single, ir.Constant(steps, ir.Undefined), zeros)
                present = builder.icmp_signed("<", ir.Constant(steps, list(range(lanes))), spread)
                place = builder.gep(matrix.data, [builder.add(builder.mul(row, width), first)])
                pointer = builder.bitcast(place, _FLOATS.as_pointer())
                return builder.call(loading, [pointer, ir.Constant(_WORD, 4), present, ir.Constant(_FLOATS, None)])

            def taken_off(values):
                bits = builder.add(builder.bitcast(values, _WORDS), _words(0x8000))
                bits = builder.and_(bits, _words(0xFFFF0000))
                bits = builder.select(builder.fcmp_unordered("uno", values, values), _words(rounding.NAN), bits)
                return bits, builder.fsub(values, builder.bitcast(bits, _FLOATS))

            for half in range(2):
                first = builder.add(args[2], ir.Constant(_LONG, half * lanes))
                even, odd = (load(builder.add(args[1], ir.Constant(_LONG, side)), first) for side in range(2))
                for term in range(count):
                    (bits, even), (bits_odd, odd) = taken_off(even), taken_off(odd)
                    offset = builder.add(args[4], builder.mul(args[5], ir.Constant(_LONG, term)))
                    place = builder.gep(held.data, [builder.add(offset, ir.Constant(_LONG, half * lanes))])
                    pair = builder.or_(builder.lshr(bits, _words(16)), bits_odd)
                    builder.store(pair, builder.bitcast(place, _WORDS.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return split_pair


_split_into_two, _split_into_three = _splitter(2), _splitter(3)


@jit
def split_rows(values, terms):
    """Split float32 `values` into two `terms` each, uint16: all first ones, then all second ones."""
    count = values.size
    for i in range(count):
        value = values[i]
        high = rounded(value)
        terms[i] = np.uint16(high >> _16)
        terms[count + i] = np.uint16(rounded(value - float_of_bits(high)) >> _16)


def _words(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * (LANES // 2))


def _widened(builder: Any, words: Any, odd: int) -> Any:
    """The float32 of the even or the odd codes of vectors of pairs."""
    return builder.bitcast(builder.and_(words, _words(0xFFFF0000)) if odd else builder.shl(words, _words(16)), _FLOATS)
