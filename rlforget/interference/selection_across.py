"""The coordinates that score highest of a model that is spread over ranks: they exchange histograms and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.weights.ranks import gathered, summed
from rlforget_kernels.common.score_bits import LEADING_BINS, TRAILING_BINS
from rlforget_kernels.select_top import leading_histogram, threshold, trailing_histogram

if TYPE_CHECKING:
    from rlforget.delta import Delta


def select_across(
    delta: Delta, scores: Mapping[str, Tensor], budget: int, histogram: Tensor | None
) -> dict[str, Tensor]:
    """Select the largest scores over tensors and ranks, as `select_top` does over the tensors of one process.

    Ties go to the earlier tensor, then to the lower index in the whole tensor, on whichever rank it is.

    Args:
        delta: What is scored, of which this rank holds a part.
        scores: For some of its tensors, float32 [changed here], non-negative.
        budget: How many to select at most; zeros never are.
        histogram: Of these scores on all ranks, int64 [4096]; None: it is counted here.

    Returns:
        For each tensor the positions of those that are here, int64, ascending.
    """
    assert delta.sharding is not None
    counted = [score for name, score in scores.items() if name in delta.sharding.counted]
    wanted = min(budget, sum(gathered(sum(int(torch.count_nonzero(score)) for score in counted))))
    if wanted == 0:
        return {name: torch.empty(0, dtype=torch.int64) for name in scores}
    if histogram is None:
        histogram = summed(leading_histogram(counted) if counted else torch.zeros(LEADING_BINS, dtype=torch.int64))
    leading, rest = threshold(histogram, wanted)
    none = torch.zeros(TRAILING_BINS, dtype=torch.int64)
    trailing, ties = threshold(summed(trailing_histogram(counted, leading) if counted else none), rest)
    least = leading << 19 | trailing
    bits = {name: (score + 0.0).view(torch.int32) for name, score in scores.items()}  # -0.0 counts as 0
    equal = {name: delta[name].indices[one == least] for name, one in bits.items()}  # by their whole tensors
    ends = _ends(delta, equal, ties)
    return {
        name: ((one > least) | ((one == least) & (delta[name].indices < ends[name]))).nonzero().flatten()
        for name, one in bits.items()
    }


def _ends(delta: Delta, equal: Mapping[str, Tensor], ties: int) -> dict[str, int]:
    """Return, for each tensor, before which index its ties are taken, so that `ties` are in all."""
    assert delta.sharding is not None
    found = delta.sharding.total({name: [indices.numel()] for name, indices in equal.items()})
    ends, left = {}, ties
    for name, indices in equal.items():
        (here,) = found[name]
        ends[name] = delta[name].numel if here <= left else _end(indices, left, delta, name)
        left -= min(here, left)
    return ends


def _end(indices: Tensor, count: int, delta: Delta, name: str) -> int:
    """Return the least index before which `count` ties of a tensor stand, on all ranks: by bisection, on sums alone."""
    assert delta.sharding is not None
    low, high = 0, delta[name].numel
    while low < high:
        middle = (low + high) // 2
        ((before,),) = delta.sharding.total({name: [int((indices < middle).sum())]}).values()
        low, high = (low, middle) if before >= count else (middle + 1, high)
    return low
