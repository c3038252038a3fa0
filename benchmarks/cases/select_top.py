"""`select_top` beside `torch.topk`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats
from rlforget_kernels.select_top import select_top


def peer(score: Tensor, count: int) -> Tensor:
    return score.topk(count, sorted=False).indices.sort().values


def make(share: float, machine: Machine) -> Case:
    (score,) = floats(machine)
    score *= score
    count = int(share * machine.elements)

    def agree() -> bool:
        (ours,) = select_top([score], count)
        theirs = peer(score, count)  # which of several equal scores it takes is not said
        return len(ours) == count and torch.equal(score[ours].sort().values, score[theirs].sort().values)

    return Case(
        moved=2 * score.nbytes + 8 * count,
        ours=lambda: select_top([score], count),
        peers=torch_peers(peer, lambda: (score, count)),
        agree=agree,
        ceiling="read",
        inputs=score.nbytes,
    )


CASES = {name: partial(make, share) for name, share in {"0.2%": 0.002, "2%": 0.02, "20%": 0.2}.items()}
