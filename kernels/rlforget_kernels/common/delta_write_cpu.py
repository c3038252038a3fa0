"""bfloat16 codes less float32 numbers, rounded to nearest even, 32 at a time, for numba kernels.

What `widen` and `round_nearest` make of them, to the bit. In a loop over 16-bit elements LLVM widens and narrows by
instructions that move elements across registers. But a bfloat16 is the upper half of a float32: of two neighbours,
which share a word, one is widened by a shift and the other by a mask, and so are their results put together.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rlforget_kernels.common.rounding import NAN

LANES = 32
_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_WORD, LANES // 2)
_FLOATS = ir.VectorType(ir.FloatType(), LANES // 2)


@intrinsic
def subtract_rounded(typing, codes, start, change, change_start, count):
    """Subtract `count` (a multiple of LANES) elements of `change` (float32) from the uint16 `codes` from `start` on.

    Where nothing of LANES elements changes nothing is written, for then memory need not be.
    """
    index = types.intp
    signature = types.void(codes, index, change, index, index)

    def codegen(context, builder, signature, args):
        def pointer(argument, offset, kind):
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            place = builder.add(args[argument + 1], offset)
            return builder.bitcast(builder.gep(data, [place]), kind.as_pointer())

        with cgutils.for_range(builder, builder.udiv(args[4], ir.Constant(_LONG, LANES))) as loop:
            j = builder.mul(loop.index, ir.Constant(_LONG, LANES))
            target = pointer(0, j, _WORDS)
            now = builder.load(target, align=2)
            first, second = (
                builder.load(pointer(2, builder.add(j, ir.Constant(_LONG, half * LANES // 2)), _FLOATS), align=4)
                for half in range(2)
            )
            halves = []
            for odd in range(2):
                lanes = ir.Constant(ir.VectorType(_WORD, LANES // 2), [2 * k + odd for k in range(LANES // 2)])
                change = builder.shuffle_vector(first, second, lanes)
                value = builder.and_(now, _words(0xFFFF0000)) if odd else builder.shl(now, _words(16))
                halves.append(_rounded(builder, builder.fsub(builder.bitcast(value, _FLOATS), change)))
            new = builder.or_(builder.lshr(halves[0], _words(16)), builder.and_(halves[1], _words(0xFFFF0000)))
            difference = builder.bitcast(builder.xor(now, new), ir.IntType(16 * LANES))
            with builder.if_then(builder.icmp_unsigned("!=", difference, ir.Constant(difference.type, 0))):
                builder.store(new, target, align=2)
        return context.get_dummy_value()

    return signature, codegen


def _words(value):
    return ir.Constant(_WORDS, [value] * (LANES // 2))


def _rounded(builder, values):
    """The bits of float32 `values` rounded to bfloat16, to nearest even, in the upper halves of words."""
    bits = builder.bitcast(values, _WORDS)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    raised = builder.add(builder.add(bits, odd), _words(0x7FFF))
    return builder.select(builder.fcmp_unordered("uno", values, values), _words(NAN), raised)
