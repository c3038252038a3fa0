"""now − share · (now − old) of bfloat16 codes, 64 at a time, for numba kernels.

What `widen` and `round_nearest` make of them, to the bit. In a loop over 16-bit elements LLVM widens and narrows by
instructions that move elements across registers. But a bfloat16 is the upper half of a float32: of two neighbours,
which share a word, one is widened by a shift and the other by a mask, and so are their results put together.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlforget_kernels.common.rounding import NAN

MOVED = 64
"""Elements that `move` takes. A processor guesses wrongly too often which single line of memory holds a difference."""

_WORD = ir.IntType(32)
_CODES = ir.VectorType(ir.IntType(16), MOVED)
_WORDS = ir.VectorType(_WORD, MOVED // 2)
_FLOATS = ir.VectorType(ir.FloatType(), MOVED // 2)


def _words(value):
    return ir.Constant(_WORDS, [value] * (MOVED // 2))


@intrinsic
def move(typing_context, now, old, start, share):
    """Move the elements of `now` (uint16) from `start` (uint64) on toward those of `old`.

    Elements that are equal keep their bits, and where all are nothing is written.
    """

    def emit(context, builder, signature, arguments):
        def pointer(argument):
            data = context.make_array(signature.args[argument])(context, builder, arguments[argument]).data
            return builder.bitcast(builder.gep(data, [arguments[2]]), _WORDS.as_pointer())

        target = pointer(0)
        words, goals = builder.load(target, align=2), builder.load(pointer(1), align=2)
        difference = builder.bitcast(builder.xor(words, goals), ir.IntType(16 * MOVED))
        with builder.if_then(builder.icmp_unsigned("!=", difference, ir.Constant(difference.type, 0))):
            nothing = ir.Constant(_FLOATS, ir.Undefined)
            one = builder.insert_element(nothing, arguments[3], ir.Constant(_WORD, 0))
            shares = builder.shuffle_vector(one, nothing, ir.Constant(_WORDS, None))
            halves = []
            for lower in (True, False):
                value, goal = (_widened(builder, side, lower) for side in (words, goals))
                moved = builder.fsub(value, builder.fmul(shares, builder.fsub(value, goal)))
                halves.append(_rounded(builder, moved))
            upper = builder.and_(halves[1], _words(0xFFFF0000))
            new = builder.or_(builder.lshr(halves[0], _words(16)), upper)
            now, old, new = (builder.bitcast(side, _CODES) for side in (words, goals, new))
            new = builder.select(builder.icmp_unsigned("==", now, old), now, new)
            builder.store(builder.bitcast(new, _WORDS), target, align=2)
        return context.get_dummy_value()

    return types.void(now, old, types.uint64, types.float32), emit


def _widened(builder, words, lower):
    """The float32 values of the codes in the lower or the upper halves of words."""
    return builder.bitcast(
        builder.shl(words, _words(16)) if lower else builder.and_(words, _words(0xFFFF0000)), _FLOATS
    )


def _rounded(builder, values):
    """The bits of float32 `values` rounded to bfloat16, to nearest even, in the upper halves of words."""
    bits = builder.bitcast(values, _WORDS)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    raised = builder.add(builder.add(bits, odd), _words(0x7FFF))
    return builder.select(builder.fcmp_unordered("uno", values, values), _words(NAN), raised)
