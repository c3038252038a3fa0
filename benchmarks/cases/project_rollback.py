"""`project_rollback_` beside the same products in torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.project import bases, layers
from benchmarks.cases.subtract import stochastic as subtract_by_chance
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from rlforget_kernels.project_rollback import foreach_project_rollback_

LAYERS = 8


def peer(weights: list[Tensor], before: list[Tensor], u: list[Tensor], v: list[Tensor], kept: list[Tensor]) -> None:
    for weight, old, left, right, shrinkage in zip(weights, before, u, v, kept, strict=True):
        core = left.T @ (weight.float() - old.float()) @ right
        weight.copy_(weight.float() - left @ (shrinkage * core) @ right.T)


def stochastic(
    weights: list[Tensor], before: list[Tensor], u: list[Tensor], v: list[Tensor], kept: list[Tensor]
) -> None:
    for weight, old, left, right, shrinkage in zip(weights, before, u, v, kept, strict=True):
        core = left.T @ (weight.float() - old.float()) @ right
        subtract_by_chance(weight, left @ (shrinkage * core) @ right.T)


def make(rank: int, seed: int | None, machine: Machine) -> Case:
    before, after = layers(machine, LAYERS)
    side, device = before[0].shape[0], machine.device
    rank = min(rank, side)
    u, v = bases(side, rank, LAYERS, device), bases(side, rank, LAYERS, device)
    kept = [torch.full((rank, rank), 0.5, device=device)] * LAYERS
    weights, theirs = after, [weight.clone() for weight in after]
    other = peer if seed is None else stochastic

    def ours() -> None:
        foreach_project_rollback_(weights, before, u, v, kept, seed)

    def agree() -> bool:
        ours()
        other(theirs, before, u, v, kept)
        # Neighbours where the correction's last bits decide, or chance.
        pairs = zip(weights, theirs, strict=True)
        return all(torch.allclose(ours, other, rtol=2**-7, atol=1e-5) for ours, other in pairs)

    size = sum(tensor.nbytes for tensor in (*before, *weights))
    return Case(
        moved=2 * size + 2 * sum(tensor.nbytes for tensor in (*u, *v)),
        ours=ours,
        peers=torch_peers(other, lambda: (theirs, before, u, v, kept)),
        agree=agree,
        inputs=size,
        flops=LAYERS * 4 * side * rank * (side + rank),
    )


CASES = {f"bfloat16, 8 layers, rank {rank}": partial(make, rank, None) for rank in (16, 64)}
CASES |= {"bfloat16, 8 layers, rank 64, stochastic": partial(make, 64, 3)}
