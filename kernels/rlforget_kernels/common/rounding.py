"""float32 to the narrower floats, as integer operations on the bits.

Hardware, interpreters and libraries differ in how they round, flush and treat NaN; integers do not. `cpu_math` and
`gpu_math` hold the same functions for numba and Triton, and the way back; all agree to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype, zero_extend

MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
NAN = 0x7FC00000
"""The one float32 NaN that the operators write."""


class FloatFormat(NamedTuple):
    """The layout of a float of 32 bits or fewer, sign bit first.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa that are stored.
        overflow: Code (without sign) of what is too large: infinity, or the largest number where the format has none.
        nan: Code of the NaN that is written.
    """

    exponent: int
    mantissa: int
    overflow: int
    nan: int

    @property
    def bias(self) -> int:
        """The exponent's bias."""
        return (1 << (self.exponent - 1)) - 1


FLOAT_FORMAT: dict[torch.dtype, FloatFormat] = {
    torch.float32: FloatFormat(8, 23, INFINITY, NAN),
    torch.bfloat16: FloatFormat(8, 7, 0x7F80, 0x7FC0),
    torch.float16: FloatFormat(5, 10, 0x7C00, 0x7E00),
    torch.float8_e4m3fn: FloatFormat(4, 3, 0x7E, 0x7F),
    torch.float8_e5m2: FloatFormat(5, 2, 0x7C, 0x7F),
}


def round_float32(values: Tensor, dtype: torch.dtype, noise: Tensor | None = None) -> Tensor:
    """Round float32 `values` to the float `dtype`, to nearest even or stochastically.

    Args:
        values: float32, any shape.
        dtype: A key of `FLOAT_FORMAT`. For float32 itself only NaNs change: they become the one NaN.
        noise: int64 in [0, 2**32), one a value: its bits round up where they exceed what the value lacks to the next
            representable one, so a value is rounded up with the probability of its position between its neighbours.

    Returns:
        The bits of the rounded values, dtype `bits_dtype(dtype)`. Too large becomes infinity (in float8_e4m3fn, which
        has none, 448), every NaN becomes the format's one positive NaN, and the sign of zero is kept.
    """
    layout = FLOAT_FORMAT[dtype]
    bits = zero_extend(values.contiguous().view(torch.int32))
    magnitude = bits & MAGNITUDE
    # Normal in the target: rebias, then drop the low bits. Subnormal: drop more bits of the full significand.
    drop = 23 - layout.mantissa
    rebias = 127 - layout.bias
    exponent = magnitude >> 23
    subnormal = exponent <= rebias if rebias else torch.zeros_like(exponent, dtype=torch.bool)
    significand = torch.where(subnormal, (magnitude & 0x7FFFFF) | 0x800000, magnitude - (rebias << 23))
    significand = torch.where(subnormal & (exponent == 0), magnitude & 0x7FFFFF, significand)
    shift = torch.where(subnormal, drop + 1 + rebias - exponent.clamp(min=1), drop)
    if noise is None:
        shift = shift.clamp(max=31)
        half = (1 << shift) >> 1
        code = (significand + (half - 1).clamp(min=0) + ((significand >> shift) & (half > 0))) >> shift
    else:
        # 32 bits below the binary point; beyond 56 dropped bits nothing is left of a 24-bit significand.
        code = (((significand << 32) >> shift.clamp(max=56)) + noise) >> 32
    code = code.clamp(max=layout.overflow)
    code = torch.where(magnitude > INFINITY, layout.nan, code | (bits >> 31 << (layout.exponent + layout.mantissa)))
    return code.to(bits_dtype(dtype))


def round_drawn(values: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """Round as `round_float32` with `noise`, but to nearest even what that takes beyond the finite range.

    So chance alone makes no infinity; in float8_e4m3fn, which has none, there is nothing to mend. What the operators
    that write a correction do when they are given a seed.
    """
    layout = FLOAT_FORMAT[dtype]
    drawn = round_float32(values, dtype, noise)
    if dtype is torch.float8_e4m3fn:
        return drawn
    magnitude = zero_extend(drawn) & ((1 << (layout.exponent + layout.mantissa)) - 1)
    return torch.where(magnitude >= layout.overflow, round_float32(values, dtype), drawn)
