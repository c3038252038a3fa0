"""`fisher_accumulate_` beside `fisher.add_(gradient.float().square_())`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import floats, lines_of
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


def gathering_peer(fisher: Tensor, gradient: Tensor, indices: Tensor) -> None:
    fisher.add_(gradient[indices].float().square())


def gathered(share: float, dtype: torch.dtype, machine: Machine) -> Case:
    (gradient,) = floats(machine)
    gradient = gradient.to(dtype)
    random = torch.Generator(machine.device).manual_seed(2)
    chosen = torch.rand(machine.elements, generator=random, device=machine.device) < share
    where = chosen.nonzero().squeeze(1)
    indices = where.int()
    fisher, theirs = (torch.zeros(len(where), device=machine.device) for _ in range(2))

    def agree() -> bool:
        fisher_accumulate_(fisher, gradient, indices)
        gathering_peer(theirs, gradient, where)
        return torch.equal(fisher, theirs)

    return Case(
        moved=len(where) * (4 + 8 + dtype.itemsize),
        ours=lambda: fisher_accumulate_(fisher, gradient, indices),
        peers=torch_peers(gathering_peer, lambda: (theirs, gradient, where)),
        agree=agree,
        ceiling="read",
        least=indices.nbytes + 2 * fisher.nbytes + lines_of(where, dtype.itemsize),
        inputs=indices.nbytes + fisher.nbytes + gradient.nbytes,
    )


CASES = {f"{str(dtype).removeprefix('torch.')}, dense": partial(make, dtype) for dtype in DTYPES}
CASES |= {
    f"bfloat16, at {name} of the coordinates": partial(gathered, share, torch.bfloat16)
    for name, share in {"1%": 0.01, "5%": 0.05}.items()
}
