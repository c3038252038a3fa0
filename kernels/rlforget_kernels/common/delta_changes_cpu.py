"""The changes among 64 elements times the rows of a matrix that they name, for numba kernels.

Each sum lives in a vector register and is one chain of fused multiply-adds in the order of the elements, so the
vectors' width changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from rlforget_kernels.common.cpu_math import float_of_bits, widen
from rlforget_kernels.common.products_cpu import PANEL_BYTES

_REGISTER = 64  # bytes of a vector
_MOST = 4  # panels whose sums are held at a time
_INDEX, _LANE, _DOUBLE = ir.IntType(64), ir.IntType(32), ir.DoubleType()


def difference(new, old, like, exponent, mantissa):
    """new − old of codes, of the type of `like`: subtracted in that, or in float64 where they are float64."""
    raise NotImplementedError("compiled only")


@overload(difference)
def _overload_difference(new, old, like, exponent, mantissa):
    result = np.float64 if like == types.float64 else np.float32
    if new == types.uint64:
        return lambda new, old, like, exponent, mantissa: result(
            np.uint64(new).view(np.float64) - np.uint64(old).view(np.float64)
        )
    if new == types.uint32:
        return lambda new, old, like, exponent, mantissa: result(float_of_bits(new)) - result(float_of_bits(old))
    return lambda new, old, like, exponent, mantissa: (
        result(widen(new, exponent, mantissa)) - result(widen(old, exponent, mantissa))
    )


@intrinsic
def add_changes(
    typing, marks, old, b, new, a, exponent, mantissa, matrix, first, step, product, target, across, panels
):
    """Add Σ (new − old) · row of the matrix, over the elements that `marks` names, to a row of a product.

    Call it where the arrays have their names: to hand them to a function that is inlined takes longer than all this.

    Args:
        marks: uint64, not 0. Its bit k stands for old[b + k], new[a + k] and row k of the matrix.
        exponent: Bits of the exponent of what the codes spell.
        mantissa: Bits of its mantissa.
        matrix: 1-D, in panels `step` apart whose rows have `PANEL_BYTES`; row 0 of the first panel is at `first`.
        product: 1-D, of the matrix's dtype, in panels `across` apart; its row's first one is at `target`.
        panels: How many there are.

    Returns:
        The sum of squares of the differences, in float64.
    """
    index = types.intp
    places = (index, index, index)
    signature = types.float64(
        types.uint64, old, index, new, index, exponent, mantissa, matrix, *places[:2], product, *places
    )

    def codegen(context, builder, signature, args):
        marks, _, b, _, a, exponent, mantissa, _, first, step, _, target, across, panels = args
        old, new, matrix, product = (
            context.make_array(signature.args[k])(context, builder, args[k]).data for k in (1, 3, 7, 10)
        )
        code, like = signature.args[1].dtype, signature.args[10].dtype
        kind = context.typing_context.resolve_value_type(difference)
        taken = (code, code, like, *signature.args[5:7])
        subtract = context.get_function(kind, kind.get_call_type(context.typing_context, taken, {}))

        def change(place):
            """The difference of one element."""
            now, was = (
                builder.load(builder.gep(side, [builder.add(start, place)])) for side, start in ((new, a), (old, b))
            )
            return subtract(builder, [now, was, ir.Constant(product.type.pointee, 0), exponent, mantissa])

        squares = cgutils.alloca_once_value(builder, ir.Constant(_DOUBLE, 0))
        with cgutils.for_range_slice(builder, _integer(0), panels, _integer(_MOST)) as (p, _):
            here = builder.gep(matrix, [builder.add(first, builder.mul(p, step))])
            there = builder.gep(product, [builder.add(target, builder.mul(p, across))])
            group = _Group(builder, marks, change, here, step, there, across)
            left = builder.sub(panels, p)
            with builder.if_else(builder.icmp_signed(">", left, _integer(2))) as (many, few):
                with many:
                    group.add(_MOST, left, squares)
                with few, builder.if_else(builder.icmp_signed(">", left, _integer(1))) as (two, one):
                    with two:
                        group.add(2, left, squares)
                    with one:
                        group.add(1, left, squares)
        return builder.load(squares)

    return signature, codegen


def _integer(value):
    return ir.Constant(_INDEX, value)


class _Group(NamedTuple):
    """Writes the code for some neighbouring panels.

    Attributes:
        builder: Where it is written.
        marks: Which elements have changed.
        change: Writes the code of an element's difference, given its place.
        matrix: The address of row 0 in the first panel.
        step: From panel to panel.
        product: The address of the row in the first panel.
        across: From panel to panel.
    """

    builder: Any
    marks: Any
    change: Callable[[Any], Any]
    matrix: Any
    step: Any
    product: Any
    across: Any

    def add(self, most, panels, squares):
        """Add to `most` panels, of which `panels` are there, and store the sum of squares."""
        builder, number = self.builder, self.product.type.pointee
        align = 8 if number == _DOUBLE else 4
        lanes, width = _REGISTER // align, PANEL_BYTES // align
        vector = ir.VectorType(number, lanes)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{8 * align}")

        def pointer(start, offset):
            return builder.bitcast(builder.gep(start, [offset]), vector.as_pointer())

        there = [builder.icmp_signed(">", panels, _integer(p)) for p in range(most)]
        # A panel that is not there takes what the first one takes, and is not written.
        steps = [
            builder.select(inside, builder.mul(self.step, _integer(p)), _integer(0)) for p, inside in enumerate(there)
        ]
        sums = {
            (p, j): cgutils.alloca_once_value(builder, ir.Constant(vector, None))
            for p in range(most)
            for j in range(0, width, lanes)
        }
        total, left = (cgutils.alloca_once_value(builder, start) for start in (ir.Constant(_DOUBLE, 0), self.marks))
        body, end = builder.append_basic_block("change"), builder.append_basic_block("changed")
        builder.branch(body)
        builder.position_at_end(body)
        word = builder.load(left)
        place = builder.cttz(word, ir.Constant(ir.IntType(1), 1))
        delta = self.change(place)
        wide = delta if number == _DOUBLE else builder.fpext(delta, _DOUBLE)
        builder.store(builder.fadd(builder.load(total), builder.fmul(wide, wide)), total)
        nothing = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(nothing, delta, ir.Constant(_LANE, 0))
        deltas = builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_LANE, lanes), [0] * lanes))
        row = builder.mul(place, _integer(width))
        for (p, j), held in sums.items():
            offset = builder.add(builder.add(row, steps[p]), _integer(j))
            values = builder.load(pointer(self.matrix, offset), align=align)
            builder.store(builder.call(fma, [deltas, values, builder.load(held)]), held)
        word = builder.and_(word, builder.sub(word, _integer(1)))
        builder.store(word, left)
        builder.cbranch(builder.icmp_unsigned("!=", word, _integer(0)), body, end)
        builder.position_at_end(end)
        for (p, j), held in sums.items():
            with builder.if_then(there[p]):
                target = pointer(self.product, builder.add(builder.mul(self.across, _integer(p)), _integer(j)))
                builder.store(builder.fadd(builder.load(target, align=align), builder.load(held)), target, align=align)
        builder.store(builder.load(total), squares)
