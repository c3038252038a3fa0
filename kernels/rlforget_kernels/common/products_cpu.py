"""Small matrix products for numba kernels: C += A·B on vector registers, every sum in the order of its terms.

LLVM does not find such a product in plain loops, so its instructions are spelled out. Each element of C is one chain of
fused multiply-adds over ascending k: the vectors' width changes which elements are computed together and no result, so
every processor gives the same bits. Some multiply pairs of bfloat16 numbers, exactly, twice as many at a time; how they
round their sums, and that numbers too small for normal ones count as 0, is their own.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # numba compiles for, settings included
_WIDE = "+avx512f" in _FEATURES
_VECTOR_BYTES = 64 if _WIDE else 32
_VECTORS = 2

TILE_ROWS = 8 if _WIDE else 4
"""Rows of C that one product takes: with two vectors each, as many accumulators as half the registers."""


PAIRS = _WIDE and "+avx512bf16" in _FEATURES
"""Whether the processor multiplies pairs of bfloat16 numbers; `pair_product` asks for it."""

PANEL_BYTES = _VECTORS * _VECTOR_BYTES
"""A row of the columns of B and C that one product takes."""

_INDEX = ir.IntType(64)


class _Bfloat16(ir.Type):  # type: ignore[misc]  # llvmlite says nothing of its types
    """The element that LLVM's products of pairs take. llvmlite knows no such type."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


@intrinsic
def tile_product(typing, a, a_start, a_row, a_step, b, b_start, c, c_start, depth):
    """C[i, j] += Σ_k A[i, k] B[k, j] for `TILE_ROWS` rows, `PANEL_BYTES` of columns and k < depth.

    A, B and C are 1-D arrays, all float32 or all float64: A[i, k] is a[a_start + i·a_row + k·a_step]; rows of B and C
    are contiguous and lie behind each other. A sum starts at 0 and is added to C at the end.
    """
    return _product_type(a, b, c), _emitting(pairs=False)


@intrinsic
def half_product(typing, a, a_start, a_row, a_step, b, b_start, c, c_start, depth):
    """The same of the first half of the columns."""
    return _product_type(a, b, c), _emitting(pairs=False, vectors=1)


@intrinsic
def pair_product(typing, a, a_start, a_row, a_step, b, b_start, c, c_start, depth):
    """The same of uint32 words, each of two bfloat16 numbers, and float32 sums: word k has the terms 2k and 2k + 1."""
    return _product_type(a, b, c), _emitting(pairs=True)


def _product_type(a, b, c):
    return types.void(a, *[types.intp] * 3, b, types.intp, c, *[types.intp] * 2)


def _emitting(*, pairs, vectors=_VECTORS):
    def codegen(context, builder, signature, args):
        def pointer(argument, start):
            array = context.make_array(signature.args[argument])(context, builder, args[argument])
            return builder.gep(array.data, [start])

        a_pointer, b_pointer, c_pointer = pointer(0, args[1]), pointer(4, args[5]), pointer(6, args[7])
        multiply = _multiplier(builder, c_pointer.type.pointee, pairs)
        _emit(builder, a_pointer, args[2], args[3], b_pointer, c_pointer, args[8], multiply, vectors)
        return context.get_dummy_value()

    return codegen


def _multiplier(builder, element, pairs):
    """Return what writes left · right + total of vectors, of floats or of words."""
    align = 8 if element == ir.DoubleType() else 4
    lanes = _VECTOR_BYTES // align
    total = ir.VectorType(element, lanes)
    factor = ir.VectorType(_Bfloat16(), 2 * lanes) if pairs else total
    name = "x86.avx512bf16.dpbf16ps.512" if pairs else f"fma.v{lanes}f{8 * align}"
    kind = ir.FunctionType(total, [total, factor, factor] if pairs else [factor, factor, total])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}")

    def multiply(left, right, sums):
        if not pairs:
            return builder.call(function, [left, right, sums])
        return builder.call(function, [sums, builder.bitcast(left, factor), builder.bitcast(right, factor)])

    return multiply


def _emit(builder, a, a_row, a_step, b, c, depth, multiply, vectors):
    """Write the loop over k, with the accumulators in slots that LLVM turns into registers."""
    align = 8 if c.type.pointee == ir.DoubleType() else 4
    lanes, width = _VECTOR_BYTES // align, PANEL_BYTES // align
    factor, vector = (ir.VectorType(pointer.type.pointee, lanes) for pointer in (a, c))

    def at(pointer, offset):
        return builder.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(_INDEX, offset)])

    def load(pointer):
        kind = ir.VectorType(pointer.type.pointee, lanes)
        return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)

    def spread(value):
        single = builder.insert_element(ir.Constant(factor, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(single, ir.Constant(factor, ir.Undefined), lane)

    zero = ir.Constant(vector, None)
    columns = range(0, vectors * lanes, lanes)
    sums = {(i, j): cgutils.alloca_once_value(builder, zero) for i in range(TILE_ROWS) for j in columns}
    with cgutils.for_range(builder, depth) as loop:
        row = at(b, builder.mul(loop.index, ir.Constant(_INDEX, width)))
        right = {j: load(at(row, j)) for j in columns}
        column = at(a, builder.mul(loop.index, a_step))
        left = [spread(builder.load(at(column, builder.mul(a_row, ir.Constant(_INDEX, i))))) for i in range(TILE_ROWS)]
        for (i, j), total in sums.items():
            builder.store(multiply(left[i], right[j], builder.load(total)), total)
    for (i, j), total in sums.items():
        target = at(c, i * width + j)
        new = builder.fadd(load(target), builder.load(total))
        builder.store(new, builder.bitcast(target, vector.as_pointer()), align=align)
