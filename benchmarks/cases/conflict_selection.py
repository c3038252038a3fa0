"""`conflict_score` and `select_top` together, beside the formula in torch and `torch.topk`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.select_top import select_top

DAMPING = 0.1


def peer(delta: Tensor, earlier: Tensor, later: Tensor, count: int) -> tuple[Tensor, Tensor]:
    score = earlier * delta * delta / (later + DAMPING)
    return score, score.topk(count, sorted=False).indices.sort().values


def two_fisher(share: float, machine: Machine) -> Case:
    delta, earlier, later = floats(machine, 3)
    count = int(share * machine.elements)

    def ours() -> tuple[Tensor, Tensor]:
        score, histogram = conflict_score(delta, "two_fisher", earlier, later, damping=DAMPING)
        (indices,) = select_top([score], count, histogram)
        return score, indices

    def agree() -> bool:
        score, indices = ours()
        theirs, where = peer(delta, earlier, later, count)  # which of several equal scores it takes is not said
        return torch.equal(score, theirs) and torch.equal(score[indices].sort().values, theirs[where].sort().values)

    return Case(
        moved=4 * delta.nbytes + 2 * delta.nbytes + 8 * count,
        ours=ours,
        peers=torch_peers(peer, lambda: (delta, earlier, later, count)),
        agree=agree,
        inputs=3 * delta.nbytes,
    )


CASES = {f"two_fisher, {name}": partial(two_fisher, share) for name, share in {"0.2%": 0.002, "2%": 0.02}.items()}
