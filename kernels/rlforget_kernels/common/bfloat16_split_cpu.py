"""The difference of rows of bfloat16 as bfloat16 terms, in vectors of 32 numbers, for numba kernels with AVX-512.

What `matrix_unit_cpu.split_row` makes of the difference, to the bit, but in a third of the time: LLVM does not find by
itself that a bfloat16 is the upper half of a float32, so that widening and narrowing are only moves of halves.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32
_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_CODES = ir.VectorType(ir.IntType(16), LANES)
_BITS = ir.VectorType(_WORD, LANES // 2)
_FLOATS = ir.VectorType(ir.FloatType(), LANES // 2)


@intrinsic
def split_difference(typing, old, old_start, new, new_start, count, terms, high, low, squares):
    """Split new − old, `count` (a multiple of LANES) bfloat16 codes from the starts on, as `split_row` does.

    The terms go to `terms` (uint16) from `high` and from `low` on; squares[j] (float32) += difference². Returns whether
    there is any second term.
    """
    index = types.intp
    signature = types.boolean(old, index, new, index, index, terms, index, index, squares)

    def codegen(context, builder, signature, args):
        def pointer(argument, start, vector):
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())

        emit = _Emitter(builder)
        found = cgutils.alloca_once_value(builder, ir.Constant(_CODES, None))
        with cgutils.for_range(builder, builder.udiv(args[4], ir.Constant(_LONG, LANES))) as loop:
            j = builder.mul(loop.index, ir.Constant(_LONG, LANES))
            before, after = (
                builder.load(pointer(side, builder.add(args[side + 1], j), _CODES), align=2) for side in (0, 2)
            )
            firsts, seconds = [], []
            for half in range(2):
                delta = builder.fsub(emit.widened(after, half), emit.widened(before, half))
                place = builder.add(j, ir.Constant(_LONG, half * LANES // 2))
                sums = pointer(8, place, _FLOATS)
                builder.store(builder.fadd(builder.load(sums, align=4), builder.fmul(delta, delta)), sums, align=4)
                first = emit.rounded(delta)
                firsts.append(first)
                seconds.append(builder.fsub(delta, builder.bitcast(first, _FLOATS)))
            low = emit.upper_halves(*seconds)
            builder.store(emit.upper_halves(*firsts), pointer(5, builder.add(args[6], j), _CODES), align=2)
            builder.store(low, pointer(5, builder.add(args[7], j), _CODES), align=2)
            builder.store(builder.or_(builder.load(found), low), found)
        lanes = builder.icmp_unsigned("!=", builder.load(found), ir.Constant(_CODES, None))
        return builder.icmp_unsigned("!=", builder.bitcast(lanes, _WORD), ir.Constant(_WORD, 0))

    return signature, codegen


class _Emitter:
    """Writes vector instructions between bfloat16 codes and float32."""

    def __init__(self, builder):
        self.builder = builder

    def widened(self, codes, half):
        """The float32 of the first or second half of codes: each code above 16 zeros."""
        lanes = [lane for code in range(LANES // 2) for lane in (0, LANES + half * LANES // 2 + code)]
        return self.builder.bitcast(self._shuffled(ir.Constant(_CODES, None), codes, lanes), _FLOATS)

    def rounded(self, floats):
        """The bits of float32 rounded to bfloat16, half up."""
        bits = self.builder.bitcast(floats, _BITS)
        raised = self.builder.add(bits, ir.Constant(_BITS, [0x8000] * (LANES // 2)))
        return self.builder.and_(raised, ir.Constant(_BITS, [0xFFFF0000] * (LANES // 2)))

    def upper_halves(self, first, second):
        """The upper 16 bits of the 32 bits of each lane of two vectors."""
        one, other = (self.builder.bitcast(side, _CODES) for side in (first, second))
        return self._shuffled(one, other, [2 * lane + 1 for lane in range(LANES)])

    def _shuffled(self, one, other, lanes):
        mask = ir.Constant(ir.VectorType(_WORD, LANES), lanes)
        return self.builder.shuffle_vector(one, other, mask)
