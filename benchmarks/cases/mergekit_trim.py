"""Trimming a task vector to its largest entries: our selection beside mergekit's mask, as its package ships it."""

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


def make(density: float, machine: Machine) -> Case:
    random = torch.Generator(machine.device).manual_seed(0)
    delta = torch.randn(machine.elements, generator=random, device=machine.device)
    count = int(density * machine.elements)

    def ours() -> Tensor:
        scores, histogram = conflict_score(delta, "magnitude")
        (chosen,) = select_top([scores], count, histogram)
        return torch.zeros_like(delta).index_copy_(0, chosen, delta[chosen])

    theirs = _mergekit(delta, density)

    def agree() -> bool:
        """Whether the same entries are kept; which of several equally large ones, the others leave to chance."""
        kept, other = ours(), trimmed(delta, count) if isinstance(theirs, Unavailable) else theirs()
        assert isinstance(other, Tensor)
        least = kept[kept != 0].abs().min()
        above = [torch.where(values.abs() > least, values, 0) for values in (kept, other)]
        return int((kept != 0).sum()) == int((other != 0).sum()) == count and torch.equal(*above)

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
