"""A 16 x 16 block of 32-bit elements transposed in vector registers, for numba kernels: LLVM makes none of a loop."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

BLOCK = 16
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(ir.IntType(32), BLOCK)


@intrinsic
def transpose_block(typing, source, source_start, source_row, target, target_start, target_row):
    """target[j, i] = source[i, j] for i, j < 16, in 1-D arrays of 32-bit elements: [i, j] is at start + i·row + j."""
    signature = types.void(source, types.intp, types.intp, target, types.intp, types.intp)

    def codegen(context, builder, signature, args):
        def row(argument, i):
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            offset = builder.add(args[argument + 1], builder.mul(args[argument + 2], ir.Constant(_INDEX, i)))
            return builder.bitcast(builder.gep(array.data, [offset]), _VECTOR.as_pointer())

        rows = [builder.load(row(0, i), align=4) for i in range(BLOCK)]
        for step in (1, 2, 4, 8):  # swap the off-diagonal halves of blocks of 2 · step
            for i in (i for i in range(BLOCK) if not i & step):
                upper, lower = rows[i], rows[i + step]
                rows[i] = _chosen(builder, upper, lower, [BLOCK + j - step if j & step else j for j in range(BLOCK)])
                rows[i + step] = _chosen(
                    builder, upper, lower, [BLOCK + j if j & step else j + step for j in range(BLOCK)]
                )
        for i, values in enumerate(rows):
            builder.store(values, row(3, i), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _chosen(builder, first, second, lanes):
    """The lanes of two vectors that `lanes` number, those of `second` from 16 on."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_LANE, BLOCK), lanes))
