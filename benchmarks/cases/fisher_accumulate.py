"""`fisher_accumulate_` beside `fisher.add_(gradient.float().square_())`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats
from rlforget_kernels.fisher_accumulate import fisher_accumulate_

DTYPES = (torch.float32, torch.bfloat16)


def peer(fisher: Tensor, gradient: Tensor) -> None:
    fisher.add_(gradient.float().square())


def make(dtype: torch.dtype, machine: Machine) -> Case:
    fisher, gradient = floats(machine, 2)
    gradient = gradient.to(dtype)
    theirs = fisher.clone()

    def agree() -> bool:
        fisher_accumulate_(fisher, gradient)
        peer(theirs, gradient)
        return torch.equal(fisher, theirs)

    return Case(
        moved=2 * fisher.nbytes + gradient.nbytes,
        ours=lambda: fisher_accumulate_(fisher, gradient),
        peers=torch_peers(peer, lambda: (theirs, gradient)),
        agree=agree,
        inputs=fisher.nbytes + gradient.nbytes,
    )


CASES = {f"{str(dtype).removeprefix('torch.')}, dense": partial(make, dtype) for dtype in DTYPES}
