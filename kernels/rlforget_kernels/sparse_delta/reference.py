"""`sparse_delta` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

from torch import Tensor

from rlforget_kernels.common.bits import as_bits, index_dtype


def sparse_delta(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.sparse_delta`."""
    old, new = as_bits(before), as_bits(after)
    indices = (old != new).nonzero().squeeze(1)
    return indices.to(index_dtype(before.numel())), old[indices], new[indices]
