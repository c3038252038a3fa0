"""`fisher_accumulate_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic import narrowed


def fisher_accumulate_(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
    """See `rlforget_kernels.fisher_accumulate`."""
    values = gradient if indices is None else gradient.reshape(-1)[indices.long()]
    values = values.to(torch.float32)
    fisher.copy_(narrowed(fisher + values * values, torch.float32))
