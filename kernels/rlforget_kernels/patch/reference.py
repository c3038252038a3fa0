"""`patch_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back


def patch_(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.patch`."""
    bits = as_bits(weight)
    inside = (indices >= 0) & (indices < bits.numel())
    mismatches = (~inside).sum() + (bits[indices[inside]] != expected_bits[inside]).sum()
    if mismatches == 0:
        bits[indices] = new_bits
        write_back(weight, bits)
    return mismatches.to(torch.int64)
