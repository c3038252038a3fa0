"""Weighted sums of a few rows of a matrix, for numba kernels: what a sparse row times that matrix is.

Sums live in vector registers. Each is one chain of fused multiply-adds in the order of the rows, so the vectors' width
changes no result.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rlforget_kernels.common.cpu_math import inlined
from rlforget_kernels.common.products_cpu import PANEL_BYTES

SUM = 256
"""Products that are added up before their sum is added to that of those before them."""
_REGISTER = 64  # bytes of a vector
_MOST = 4  # vectors of sums at a time
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)


@inlined
def add_weighted_rows(weights, places, start, stop, base, matrix, product, target, step):
    """Add Σ weights[k] · matrix[places[k] − base], k from start to stop, to a row of a product in panels.

    Args:
        weights: 1-D, of the dtype of `product`.
        places: 1-D integers.
        matrix: C-contiguous, float32 or of the dtype of `product`.
        product: 1-D. The row's first panel is at `target`, the others `step` apart; see `products_cpu`.
    """
    lanes = _REGISTER // product.itemsize
    for first in range(start, stop, SUM):
        last = min(first + SUM, stop)
        for column in range(0, matrix.shape[1], _MOST * lanes):
            here = target + column * product.itemsize // PANEL_BYTES * step
            left = matrix.shape[1] - column
            if left > 2 * lanes:
                _add_four(weights, places, first, last, base, matrix, column, product, here, step)
            elif left > lanes:
                _add_two(weights, places, first, last, base, matrix, column, product, here, step)
            else:
                _add_one(weights, places, first, last, base, matrix, column, product, here, step)


def _adder(vectors):
    @intrinsic
    def add(typing, weights, places, start, stop, base, matrix, column, product, target, step):
        """Do it for `vectors` registers of sums, the first for the columns from `column` on."""
        index = types.intp
        signature = types.void(weights, places, index, index, index, matrix, index, product, index, index)

        def codegen(context, builder, signature, args):
            weights, places, matrix, product = (
                context.make_array(signature.args[k])(context, builder, args[k]) for k in (0, 1, 5, 7)
            )
            number, narrow = product.data.type.pointee, matrix.data.type.pointee
            align, size = (8 if kind == ir.DoubleType() else 4 for kind in (number, narrow))
            lanes = _REGISTER // align
            vector, source = ir.VectorType(number, lanes), ir.VectorType(narrow, lanes)
            width = builder.extract_value(matrix.shape, 1)
            left = builder.sub(width, args[6])

            def integer(value):
                return ir.Constant(_INDEX, value)

            def spread(value, kind):
                single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_LANE, 0))
                zeros = ir.Constant(ir.VectorType(_LANE, lanes), [0] * lanes)
                return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)

            def mask(first):
                steps = ir.VectorType(_INDEX, lanes)
                numbers = ir.Constant(steps, [first + lane for lane in range(lanes)])
                return builder.icmp_signed("<", numbers, spread(left, steps))

            masks = [mask(part * lanes) for part in range(vectors)]
            kind = ir.FunctionType(source, [source.as_pointer(), _LANE, masks[0].type, source])
            name = f"llvm.masked.load.v{lanes}f{8 * size}.p0v{lanes}f{8 * size}"
            loading = cgutils.get_or_insert_function(builder.module, kind, name)
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{8 * align}")
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(vectors)]
            with cgutils.for_range_slice(builder, args[2], args[3], integer(1)) as (k, _):
                place = builder.load(builder.gep(places.data, [k]))
                place = place if place.type == _INDEX else builder.sext(place, _INDEX)
                row = builder.mul(builder.sub(place, args[4]), width)
                first = builder.gep(matrix.data, [builder.add(row, args[6])])
                weight = spread(builder.load(builder.gep(weights.data, [k])), vector)
                for part, total in enumerate(sums):
                    pointer = builder.bitcast(builder.gep(first, [integer(part * lanes)]), source.as_pointer())
                    loaded = [pointer, ir.Constant(_LANE, size), masks[part], ir.Constant(source, None)]
                    values = builder.call(loading, loaded)
                    values = values if narrow == number else builder.fpext(values, vector)
                    builder.store(builder.call(fma, [weight, values, builder.load(total)]), total)
            together = PANEL_BYTES // _REGISTER
            for part, total in enumerate(sums):
                with builder.if_then(builder.icmp_signed(">", left, integer(part * lanes))):
                    panel = builder.mul(args[9], integer(part // together))
                    place = builder.add(builder.add(args[8], panel), integer(part % together * lanes))
                    pointer = builder.bitcast(builder.gep(product.data, [place]), vector.as_pointer())
                    new = builder.fadd(builder.load(pointer, align=align), builder.load(total))
                    builder.store(new, pointer, align=align)
            return context.get_dummy_value()

        return signature, codegen

    return add


_add_one, _add_two, _add_four = (_adder(vectors) for vectors in (1, 2, _MOST))
