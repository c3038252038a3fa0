"""`delta_matmul` beside the difference, stored, times the same matrices."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from benchmarks.cases.project import bases, layers
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from rlforget_kernels.delta_matmul import delta_matmul

LAYERS = 4


def peer(before: list[Tensor], after: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    lists = zip(before, after, right, strict=True)
    return [(new.float() - old.float()) @ factor for old, new, factor in lists]


def make(rank: int, machine: Machine) -> Case:
    before, after = layers(machine, LAYERS)
    side = before[0].shape[0]
    rank = min(rank, side)
    right = bases(side, rank, LAYERS, machine.device)

    def agree() -> bool:
        products, _ = delta_matmul(before, after, right)
        pairs = zip(products, peer(before, after, right), strict=True)
        return all(bool((ours - theirs).norm() <= 1e-4 * theirs.norm()) for ours, theirs in pairs)

    inputs = sum(tensor.nbytes for tensor in (*before, *after, *right))
    return Case(
        moved=inputs + LAYERS * 4 * side * rank,
        ours=lambda: delta_matmul(before, after, right),
        peers=torch_peers(peer, lambda: (before, after, right)),
        agree=agree,
        ceiling="read" if machine.device.type == "cpu" else "copy",
        inputs=inputs,
        flops=LAYERS * 2 * side * side * rank,
    )


CASES = {f"bfloat16, 4 layers, rank {rank}": partial(make, rank) for rank in (16, 64)}
