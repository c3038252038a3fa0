"""`conflict_score` beside the formula in torch and a count of the scores' leading bits."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats
from rlforget_kernels.conflict_score import conflict_score


def peer(delta: Tensor, earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    score = earlier * delta * delta / (later + 0.1)
    return score, torch.bincount(score.view(torch.int32) >> 19, minlength=1 << 12)


def two_fisher(machine: Machine) -> Case:
    delta, earlier, later = floats(machine, 3)

    def ours() -> tuple[Tensor, Tensor]:
        return conflict_score(delta, "two_fisher", earlier, later, damping=0.1)

    return Case(
        moved=4 * delta.nbytes,
        ours=ours,
        peers=torch_peers(peer, lambda: (delta, earlier, later)),
        agree=lambda: all(map(torch.equal, ours(), peer(delta, earlier, later))),
        inputs=3 * delta.nbytes,
    )


CASES = {"two_fisher": two_fisher}
