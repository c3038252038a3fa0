"""Sixty-four elements at a time, for numba kernels: which of them differ, as the bits of a word, and those picked out.

numba has no vectors, so these write LLVM's. Comparing is plain LLVM, which knows how on every processor. Picking out
takes AVX-512 (VBMI2); `can_compress` tells, at run time, whether the code that numba makes may use it.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 64
"""Elements that a word stands for, the first by its lowest bit."""

_WORD = ir.IntType(LANES)
_REGISTER_BITS = 512


@functools.cache
def can_compress() -> bool:
    """Whether kernels that call `compress` and `compress_indices` can be compiled for this machine."""
    *_, features = cpu_target.target_context.codegen().magic_tuple()  # what numba compiles for, settings included
    return {"+avx512f", "+avx512vl", "+avx512vbmi2"} <= set(features.split(","))


@intrinsic
def differences(typing_context, old, new, start):
    """The uint64 word of the elements from `start` (uint64) on that differ between two integer arrays."""

    def emit(context, builder, signature, arguments):
        array, *_ = signature.args
        vector = ir.VectorType(ir.IntType(array.dtype.bitwidth), LANES)
        sides = [
            _load(builder, _address(context, builder, array, side, arguments[2]), vector) for side in arguments[:2]
        ]
        return builder.bitcast(builder.icmp_unsigned("!=", *sides), _WORD)

    return types.uint64(old, new, types.uint64), emit


@intrinsic
def magnitudes_above(typing_context, bits, start, floor):
    """The uint64 word of the elements of `bits` (uint32) from `start` on that exceed `floor` (int32, from -1 on).

    Compared without their leading bit, so as magnitudes of floats.
    """

    def emit(context, builder, signature, arguments):
        vector = ir.VectorType(ir.IntType(32), LANES)
        values = _load(builder, _address(context, builder, signature.args[0], *arguments[:2]), vector)
        magnitudes = builder.and_(values, ir.Constant(vector, [0x7FFFFFFF] * LANES))
        return builder.bitcast(builder.icmp_signed(">", magnitudes, _repeated(builder, arguments[2], vector)), _WORD)

    return types.uint64(bits, types.uint64, types.int32), emit


@intrinsic
def count_bits(typing_context, word):
    """The number of bits that are set in a uint64."""
    return types.uint64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def lowest_bit(typing_context, word):
    """The position of the lowest bit that is set in a uint64, which is not 0."""

    def emit(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), emit


@intrinsic
def bit_length(typing_context, word):
    """The number of bits of a uint64 from its highest that is set on; 0 for 0."""

    def emit(context, builder, signature, arguments):
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(_WORD, LANES), zeros)

    return types.uint64(types.uint64), emit


@intrinsic
def compress(typing_context, source, start, word, target, place):
    """Write the elements of `source` from `start` on that `word` picks to `target` from `place` on.

    `target`, an array like `source`, may be overwritten up to 64 elements behind `place`.
    """

    def emit(context, builder, signature, arguments):
        source, start, word, target, place = arguments
        first = _address(context, builder, signature.args[0], source, start)

        def elements(number, vector):
            return _load(builder, builder.gep(first, [ir.Constant(_WORD, number * vector.count)]), vector)

        _compress(builder, elements, word, _address(context, builder, signature.args[3], target, place))
        return context.get_dummy_value()

    return types.void(source, types.uint64, types.uint64, target, types.uint64), emit


@intrinsic
def compress_indices(typing_context, start, word, target, place):
    """Write the numbers from `start` on that `word` picks to `target` (int32 or int64), as `compress` does."""

    def emit(context, builder, signature, arguments):
        start, word, target, place = arguments
        out = _address(context, builder, signature.args[2], target, place)
        element = out.type.pointee
        first = start if element == _WORD else builder.trunc(start, element)

        def numbers(number, vector):
            steps = ir.Constant(vector, [number * vector.count + lane for lane in range(vector.count)])
            return builder.add(_repeated(builder, first, vector), steps)

        _compress(builder, numbers, word, out)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, target, types.uint64), emit


def _compress(builder, values, word, out):
    """Write what `word` picks of values(number, vector type), one register after the other, to the pointer `out`."""
    element = out.type.pointee
    vector = ir.VectorType(element, _REGISTER_BITS // element.width)
    lanes = ir.IntType(vector.count)
    mask = ir.VectorType(ir.IntType(1), vector.count)
    name = f"llvm.x86.avx512.mask.compress.v{vector.count}i{element.width}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector, vector, mask]), name)
    for number in range(LANES // vector.count):
        part = word
        if vector.count < LANES:
            part = builder.trunc(builder.lshr(word, ir.Constant(_WORD, number * vector.count)), lanes)
        # Into a register and whole out of it: a compressing store is slow on some processors.
        picked = builder.call(
            function, [values(number, vector), ir.Constant(vector, None), builder.bitcast(part, mask)]
        )
        builder.store(picked, builder.bitcast(out, vector.as_pointer()), align=element.width // 8)
        count = builder.ctpop(part)
        out = builder.gep(out, [count if vector.count == LANES else builder.zext(count, _WORD)])


def _address(context, builder, array_type, array, index):
    """A pointer to an element of a contiguous array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _load(builder, pointer, vector):
    """The vector that starts at a pointer to an element."""
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=vector.element.width // 8)


def _repeated(builder, value, vector):
    """A vector of one value."""
    nothing, numbers = ir.Constant(vector, ir.Undefined), ir.VectorType(ir.IntType(32), vector.count)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(numbers, None))
