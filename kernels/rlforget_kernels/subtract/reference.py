"""`subtract_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic import narrowed, widened
from rlforget_kernels.common.bits import as_bits, zero_extend
from rlforget_kernels.common.hashing import random_words, shift_right
from rlforget_kernels.common.rounding import FLOAT_FORMAT


def subtract_(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    """See `rlforget_kernels.subtract`."""
    difference = widened(weight) - u
    result = narrowed(difference, weight.dtype)
    if seed is not None and weight.dtype not in (torch.float32, torch.float64):
        noise = shift_right(random_words(seed, offset, weight.numel(), weight.device), 32).reshape(weight.shape)
        drawn = narrowed(difference, weight.dtype, noise)
        layout = FLOAT_FORMAT[weight.dtype]
        magnitude = zero_extend(as_bits(drawn)) & ((1 << (layout.exponent + layout.mantissa)) - 1)
        beyond = (magnitude >= layout.overflow).reshape(weight.shape)
        result = torch.where(beyond, as_bits(result).view(weight.shape), as_bits(drawn).view(weight.shape))
        result = result.view(weight.dtype)
    weight.copy_(result)
