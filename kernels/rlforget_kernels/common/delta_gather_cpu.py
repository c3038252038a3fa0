"""Codes of a matrix of any strides laid out in rows, for numba kernels."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlforget_kernels.common.cpu_math import jit

_SIDE = 16  # of the blocks that are transposed in vector registers
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)


@jit
def gather(source, start, row, column, rows, count, target, pitch, taken):
    """target[k · pitch + l] = source[start + k · row + l · column] for l < count, and 0 from there to `taken`."""
    for k in range(rows):
        target[k * pitch + count : k * pitch + taken] = 0
    if column == 1:
        for k in range(rows):
            here = start + k * row
            target[k * pitch : k * pitch + count] = source[here : here + count]
        return
    whole, blocks = 0, 0
    if row == 1:
        whole, blocks = rows // _SIDE * _SIDE, count // _SIDE * _SIDE
        for l in range(0, blocks, _SIDE):
            for k in range(0, whole, _SIDE):
                _transpose(source, start + k + l * column, column, target, k * pitch + l, pitch)
    _gather_singly(source, start, row, column, 0, whole, blocks, count, target, pitch)
    _gather_singly(source, start, row, column, whole, rows, 0, count, target, pitch)


@jit
def _gather_singly(source, start, row, column, first, stop, begin, end, target, pitch):
    # A few columns at a time: as many lines of memory stay in the first cache as are read, and lines are written.
    for left in range(begin, end, _SIDE):
        for k in range(first, stop):
            for l in range(left, min(left + _SIDE, end)):
                target[k * pitch + l] = source[start + k * row + l * column]


@intrinsic
def _transpose(typing, source, source_start, source_row, target, target_start, target_row):
    """target[j, i] = source[i, j] for i, j < 16, in 1-D arrays of integers: [i, j] is at start + i · row + j."""
    index = types.intp
    signature = types.void(source, index, index, target, index, index)

    def codegen(context, builder, signature, args):
        width = signature.args[0].dtype.bitwidth
        vector = ir.VectorType(ir.IntType(width), _SIDE)

        def row(argument, i):
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            offset = builder.add(args[argument + 1], builder.mul(args[argument + 2], ir.Constant(_INDEX, i)))
            return builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer())

        def chosen(first, second, lanes):
            return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_LANE, _SIDE), lanes))

        rows = [builder.load(row(0, i), align=width // 8) for i in range(_SIDE)]
        for step in (1, 2, 4, 8):  # swap the off-diagonal halves of blocks of 2 · step
            for i in (i for i in range(_SIDE) if not i & step):
                upper, lower = rows[i], rows[i + step]
                rows[i] = chosen(upper, lower, [_SIDE + j - step if j & step else j for j in range(_SIDE)])
                rows[i + step] = chosen(upper, lower, [_SIDE + j if j & step else j + step for j in range(_SIDE)])
        for i, values in enumerate(rows):
            builder.store(values, row(3, i), align=width // 8)
        return context.get_dummy_value()

    return signature, codegen
