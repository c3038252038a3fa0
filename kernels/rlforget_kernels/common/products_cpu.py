"""Small matrix products for numba kernels: C += A·B on vector registers, every sum in the order of its terms.

LLVM does not find such a product in plain loops, so its instructions are spelled out. Each element of C is one chain of
fused multiply-adds over ascending k: the vectors' width changes which elements are computed together and no result, so
every processor gives the same bits.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

# What numba compiles for, settings included.
_WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
_VECTOR_BYTES = 64 if _WIDE else 32
_VECTORS = 2

TILE_ROWS = 8 if _WIDE else 4
"""Rows of C that one product takes: with two vectors each, as many accumulators as half the registers."""


PANEL_BYTES = _VECTORS * _VECTOR_BYTES
"""A row of the columns of B and C that one product takes."""

_INDEX = ir.IntType(64)


@intrinsic
def tile_product(typing, a, a_start, a_row, a_step, b, b_start, c, c_start, depth):
    """C[i, j] += Σ_k A[i, k] B[k, j] for `TILE_ROWS` rows, `PANEL_BYTES` of columns and k < depth.

    A, B and C are 1-D arrays, all float32 or all float64: A[i, k] is a[a_start + i·a_row + k·a_step]; rows of B and C
    are contiguous and lie behind each other. A sum starts at 0 and is added to C at the end.
    """
    signature = types.void(a, *[types.intp] * 3, b, types.intp, c, *[types.intp] * 2)

    def codegen(context, builder, signature, args):
        def pointer(argument, start):
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            return builder.gep(array.data, [start])

        a_pointer, b_pointer, c_pointer = pointer(0, args[1]), pointer(4, args[5]), pointer(6, args[7])
        _emit(builder, a_pointer, args[2], args[3], b_pointer, c_pointer, args[8])
        return context.get_dummy_value()

    return signature, codegen


def _emit(builder, a, a_row, a_step, b, c, depth):
    """Write the loop over k, with the accumulators in slots that LLVM turns into registers."""
    element = a.type.pointee
    align = 8 if element == ir.DoubleType() else 4
    lanes, width = _VECTOR_BYTES // align, PANEL_BYTES // align
    vector = ir.VectorType(element, lanes)
    kind = f"f{8 * align}"
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}{kind}"
    )

    def at(pointer, offset):
        return builder.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(_INDEX, offset)])

    def load(pointer):
        return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=align)

    def spread(value):
        single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lane)

    zero = ir.Constant(vector, None)
    sums = {(i, j): cgutils.alloca_once_value(builder, zero) for i in range(TILE_ROWS) for j in range(0, width, lanes)}
    with cgutils.for_range(builder, depth) as loop:
        row = at(b, builder.mul(loop.index, ir.Constant(_INDEX, width)))
        right = {j: load(at(row, j)) for j in range(0, width, lanes)}
        column = at(a, builder.mul(loop.index, a_step))
        left = [spread(builder.load(at(column, builder.mul(a_row, ir.Constant(_INDEX, i))))) for i in range(TILE_ROWS)]
        for (i, j), total in sums.items():
            builder.store(builder.call(fma, [left[i], right[j], builder.load(total)]), total)
    for (i, j), total in sums.items():
        target = at(c, i * width + j)
        new = builder.fadd(load(target), builder.load(total))
        builder.store(new, builder.bitcast(target, vector.as_pointer()), align=align)
