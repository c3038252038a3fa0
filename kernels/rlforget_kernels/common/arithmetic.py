"""Which dtypes the arithmetic operators work in, for their references: float64 in itself, narrower floats in float32.

A NaN that arithmetic makes has a sign and payload of the machine's choice, so results are written with one NaN.
`arithmetic_cpu` and `arithmetic_gpu` hold the same for numba and Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.rounding import round_drawn, round_float32

FLOAT64_MAGNITUDE = 0x7FFFFFFFFFFFFFFF
FLOAT64_INFINITY = 0x7FF0000000000000
FLOAT64_NAN = 0x7FF8000000000000
"""The one float64 NaN that the operators write."""


def widened(values: Tensor) -> Tensor:
    """`values`, floats of any dtype, in the dtype to compute in (any shape): exact."""
    return values if values.dtype is torch.float64 else values.to(torch.float32)


def narrowed(values: Tensor, dtype: torch.dtype, noise: Tensor | None = None) -> Tensor:
    """What `widened` values become in `dtype`.

    Args:
        values: float64 for float64, else float32.
        dtype: A float dtype. float32 and float64 hold the values as they are, but for their NaNs: the one NaN.
        noise: int64 in [0, 2**32), one a value, for `round_drawn`. None: to nearest even.
    """
    if dtype is torch.float64:
        return values.masked_fill(values.isnan(), float("nan"))
    if noise is None or dtype is torch.float32:
        return round_float32(values, dtype).view(dtype)
    return round_drawn(values, dtype, noise).view(dtype)
