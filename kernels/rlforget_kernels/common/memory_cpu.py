"""What a numba kernel tells the memory: what it will need soon, and what it will not need again.

On x86 processors both are there; elsewhere LLVM does what is nearest, or nothing.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 16
"""Float32 numbers of a cache line."""

_WORD = ir.IntType(32)
_READ, _TO_SECOND_CACHE, _DATA = 0, 2, 1  # the first cache is too small for what comes later
_VECTOR = ir.VectorType(ir.FloatType(), LINE)


@intrinsic
def prefetch(typing, array, index):
    """Fetch the cache line of element `index` of a 1-D array: computing on what is there hides the wait."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(_WORD, hint) for hint in (_READ, _TO_SECOND_CACHE, _DATA))])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def write_line(typing, source, start, target, target_start):
    """Copy a line of float32 past the caches, which would read it first and then keep it. Both start at 64 bytes."""

    def codegen(context, builder, signature, args):
        def line(argument):
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            return builder.bitcast(builder.gep(data, [args[argument + 1]]), _VECTOR.as_pointer())

        store = builder.store(builder.load(line(0), align=64), line(2), align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_WORD, 1)]))
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen
