"""The largest scores of each of many short tensors on a device: sorted together, for alone each costs several launches.

The sort orders by (tensor, falling score), and keeps the order of what is equal. It takes some 80 bytes a score: one
has no more scores than the longest of these tensors can have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.rounding import INFINITY
from rlforget_kernels.common.score_bits import TRAILING_BINS, ordered

_SORTED = TRAILING_BINS  # scores of one sort, at most


def select_short(scores: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """Select the `counts[k]` largest scores of tensor k, ties going to the lowest index.

    Args:
        scores: Of fewer than `TRAILING_BINS` scores each.
        counts: One a tensor.

    Returns:
        int64 flat indices of each tensor, ascending; and how many scores of each are NaN or negative: where any are,
        the indices mean nothing.
    """
    indices: list[Tensor] = []
    faults: list[int] = []
    for batch in _batches([score.numel() for score in scores]):
        found, wrong = _select(scores[batch], counts[batch])
        indices += found
        faults += wrong
    return indices, faults


def _batches(sizes: Sequence[int]) -> Iterator[slice]:
    start = total = 0
    for position, size in enumerate(sizes):
        if total + size > _SORTED and position > start:
            yield slice(start, position)
            start, total = position, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def _select(scores: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    codes = ordered(torch.cat([score.reshape(-1) for score in scores]))
    sizes, wanted = torch.tensor([[score.numel() for score in scores], counts]).to(codes.device)
    owners = torch.repeat_interleave(sizes, output_size=len(codes))
    index = torch.arange(len(codes), device=codes.device) - (sizes.cumsum(0) - sizes)[owners]
    # The sort leaves each tensor its places, so that `index` is the rank there.
    chosen = torch.empty_like(codes, dtype=torch.bool)
    chosen[torch.argsort((owners << 32) - codes, stable=True)] = index < wanted[owners]
    faults = torch.zeros_like(sizes).index_add_(0, owners, (codes > INFINITY).long())
    indices = [torch.empty(count, dtype=torch.int64, device=codes.device) for count in counts]
    torch._foreach_copy_(indices, index[chosen].split(list(counts)))  # tensors of their own, in one launch
    return indices, faults.tolist()
