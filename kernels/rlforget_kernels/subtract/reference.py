"""`subtract_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic import narrowed, widened
from rlforget_kernels.common.hashing import random_bits


def subtract_(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    """See `rlforget_kernels.subtract`."""
    noise = None
    if seed is not None:
        index = torch.arange(weight.numel(), device=weight.device) + offset
        noise = random_bits(seed, index).view(weight.shape)
    weight.copy_(narrowed(widened(weight) - u, weight.dtype, noise))
