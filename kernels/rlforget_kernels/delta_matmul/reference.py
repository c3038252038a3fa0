"""`delta_matmul` in plain torch, in float64: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def delta_matmul(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.delta_matmul`."""
    deltas = [difference(*pair, float64) for pair in zip(before, after, strict=True)]
    dtype = torch.float64 if float64 else torch.float32
    products = [(delta @ factor.double()).to(dtype) for delta, factor in zip(deltas, right, strict=True)]
    return products, torch.stack([delta.square().sum() for delta in deltas])


def difference(before: Tensor, after: Tensor, float64: bool) -> Tensor:
    """after − before as float64, rounded to float32 unless `float64`."""
    wide = torch.float64 if float64 or before.dtype is torch.float64 else torch.float32
    delta = after.to(wide) - before.to(wide)
    return delta if float64 else delta.to(torch.float32).double()
