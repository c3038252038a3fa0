"""Trimming a task vector to its largest entries: our selection beside mergekit's mask, as its package ships it.

No two entries at the edge of the mask are equally large, so there is one right mask, and both must find it. What they
return is equal but for the sign of a zero: mergekit multiplies by its mask, which makes −0.0 of negative entries.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Machine, Peer, Unavailable
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.select_top import select_top


def trimmed(delta: Tensor, count: int) -> Tensor:
    chosen = delta.abs().topk(count, sorted=False).indices
    return torch.zeros_like(delta).index_copy_(0, chosen, delta[chosen])


def without_ties(delta: Tensor, count: int) -> Tensor:
    """Put zeros where an entry is as large as the smallest of the `count` largest and comes after them."""
    size = delta.abs()
    least = size.topk(count, sorted=False).values.min()
    equal = (size == least).nonzero().squeeze(1)
    return delta.index_fill_(0, equal[count - int((size > least).sum()) :], 0.0)


def make(density: float, machine: Machine) -> Case:
    random = torch.Generator(machine.device).manual_seed(0)
    count = int(density * machine.elements)
    delta = without_ties(torch.randn(machine.elements, generator=random, device=machine.device), count)

    def ours() -> Tensor:
        scores, histogram = conflict_score(delta, "magnitude")
        (chosen,) = select_top([scores], count, histogram)
        return torch.zeros_like(delta).index_copy_(0, chosen, delta[chosen])

    theirs = _mergekit(delta, density)

    def agree() -> bool:
        kept, other = ours(), trimmed(delta, count) if isinstance(theirs, Unavailable) else theirs()
        assert isinstance(other, Tensor)
        return int(kept.count_nonzero()) == count and torch.equal(kept, other)

    return Case(
        moved=3 * delta.nbytes,
        ours=ours,
        peers={"mergekit": theirs},
        agree=agree,
        inputs=delta.nbytes,
    )


def _mergekit(delta: Tensor, density: float) -> Peer:
    try:
        from mergekit.sparsify import magnitude
    except ImportError:
        return Unavailable("not installed; it is in the extra bench-mergekit")
    return lambda: magnitude(delta, density)


CASES = {"density 0.2": partial(make, 0.2)}
