"""`patch_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back


def foreach_patch_(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    expected_bits: Sequence[Tensor],
    new_bits: Sequence[Tensor],
) -> Tensor:
    """See `rlforget_kernels.patch`."""
    held = [as_bits(weight) for weight in weights]
    mismatches = torch.stack(list(map(_mismatches, held, indices, expected_bits)))
    if not mismatches.any():
        for weight, bits, where, new in zip(weights, held, indices, new_bits, strict=True):
            bits[where] = new
            write_back(weight, bits)
    return mismatches


def _mismatches(bits: Tensor, indices: Tensor, expected_bits: Tensor) -> Tensor:
    inside = (indices >= 0) & (indices < bits.numel())
    return (~inside).sum() + (bits[indices[inside]] != expected_bits[inside]).sum()
