"""Products of bfloat16 matrices on the matrix unit of x86 processors (AMX): exact products, added up in float32.

The unit takes subnormal numbers for zero, and adds in an order of its own: results differ from those of `products_cpu`
in the last bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_SIDE = 32  # rows and columns of C that one product takes; its depth is a multiple of it
_HALF = 16  # rows of a tile register, which holds 16 rows of 64 bytes
_ROW = 128  # bytes of 32 float32, or of 32 pairs of bfloat16
_CORNERS = (0, 64, _HALF * _ROW, _HALF * _ROW + 64)  # bytes to the four registers' parts of C

CONFIGURATION = np.zeros(64, dtype=np.uint8)
"""What the unit is told of its eight tile registers: palette 1, each 16 rows of 64 bytes."""
CONFIGURATION[0] = 1
CONFIGURATION[16:32:2] = 64
CONFIGURATION[48:56] = _HALF

_BYTE, _LONG = ir.IntType(8), ir.IntType(64)


@functools.cache
def available() -> bool:
    """Whether this processor has the unit and the system lets this process use it."""
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # that numba compiles for
    ask = getattr(torch.cpu, "_init_amx", lambda: False)
    return "+amx-bf16" in features and bool(ask())


@intrinsic
def tile_product(typing, configuration, a, a_start, a_row, b, b_start, c, c_start, depth):
    """C[i, j] += Σ_k A[i, k] B[k, j] for 32 rows, 32 columns and k < depth.

    A and B are bfloat16 codes in 1-D uint16 arrays: A[i, k] at a_start + i·a_row + k, and B[k, j] at
    b_start + 64·(k div 2) + 2·j + k mod 2. C is float32, its rows of 32 behind each other from c_start on.
    """
    signature = types.void(configuration, a, types.intp, types.intp, b, types.intp, c, types.intp, types.intp)

    def codegen(context, builder, signature, args):
        def data(position, start, size):
            array = context.make_array(signature.args[position])(context, builder, args[position])
            return unit.at(builder.bitcast(array.data, _BYTE.as_pointer()), unit.times(start, size))

        unit = Unit(builder)
        none, row = ir.Constant(_LONG, 0), ir.Constant(_LONG, _ROW)
        c_tiles, a_row = data(6, args[7], 4), unit.times(args[3], 2)
        unit.call("ldtilecfg", data(0, none, 1))
        for tile, offset in enumerate(_CORNERS):
            unit.call("tileloadd64", unit.register(tile), unit.at(c_tiles, offset), row)
        with cgutils.for_range(builder, builder.udiv(args[8], ir.Constant(_LONG, _SIDE))) as loop:
            a_here = unit.at(data(1, args[2], 2), unit.times(loop.index, 2 * _SIDE))
            b_here = unit.at(data(4, args[5], 2), unit.times(loop.index, _HALF * _ROW))
            for half in range(2):
                unit.call(
                    "tileloadd64", unit.register(4 + half), unit.at(a_here, unit.times(a_row, _HALF * half)), a_row
                )
                unit.call("tileloadd64", unit.register(6 + half), unit.at(b_here, 64 * half), row)
            for tile in range(4):
                unit.multiply(tile, 4 + tile // 2, 6 + tile % 2)
        for tile, offset in enumerate(_CORNERS):
            unit.call("tilestored64", unit.register(tile), unit.at(c_tiles, offset), row)
        unit.call("tilerelease")
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def configure(typing, configuration):
    """Take the tile registers, for code that is written with `Unit`."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        Unit(builder).call("ldtilecfg", builder.bitcast(data, _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(configuration), codegen


@intrinsic
def release(typing):
    """Give the tile registers back: what is in use is saved wherever a processor changes threads."""

    def codegen(context, builder, signature, args):
        Unit(builder).call("tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


class Unit:
    """Writes the unit's instructions, and the addresses they take, into a kernel.

    Args:
        builder: Where the kernel's code is written.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def call(self, name: str, *args: Any) -> None:
        """Write one instruction."""
        kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}"), args)

    def clear(self, number: int) -> None:
        """Set a tile register to zeros."""
        self.call("tilezero", self.register(number))

    def load(self, number: int, start: Any, row: int) -> None:
        """Fill a tile register with rows that are `row` bytes apart."""
        self.call("tileloadd64", self.register(number), start, ir.Constant(_LONG, row))

    def store(self, number: int, start: Any, row: int) -> None:
        """Write a tile register to rows that are `row` bytes apart."""
        self.call("tilestored64", self.register(number), start, ir.Constant(_LONG, row))

    def multiply(self, c: int, a: int, b: int) -> None:
        """Add the product of two tile registers to a third."""
        self.call("tdpbf16ps", *map(self.register, (c, a, b)))

    def register(self, number: int) -> Any:
        """How an instruction names a tile register."""
        return ir.Constant(_BYTE, number)

    def times(self, value: Any, factor: int) -> Any:
        """A number of bytes."""
        return self.builder.mul(value, ir.Constant(_LONG, factor))

    def at(self, pointer: Any, offset: Any) -> Any:
        """The address so many bytes on."""
        return self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(_LONG, offset)])
