"""`low_rank` beside `torch.svd_lowrank` of the difference."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.project import layers
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from rlforget_kernels.low_rank import low_rank

LAYERS = 4


def peer(before: list[Tensor], after: list[Tensor], rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    pairs = zip(before, after, strict=True)
    return [torch.svd_lowrank(new.float() - old.float(), rank + 8, niter=2) for old, new in pairs]


def make(rank: int, machine: Machine) -> Case:
    before, after = layers(machine, LAYERS)

    def agree() -> bool:
        pairs = zip(low_rank(before, after, rank), peer(before, after, rank), strict=True)
        # Two random ranges: of a spectrum that hardly falls, each misses a little of its own.
        return all(torch.allclose(ours.s, theirs[1][:rank], rtol=0.05) for ours, theirs in pairs)

    size = sum(tensor.nbytes for tensor in (*before, *after))
    side = before[0].shape[0]
    return Case(
        moved=6 * size,
        ours=lambda: low_rank(before, after, rank),
        peers=torch_peers(peer, lambda: (before, after, rank)),
        agree=agree,
        ceiling="read" if machine.device.type == "cpu" else "copy",
        inputs=size,
        flops=LAYERS * 6 * 2 * side * side * (rank + 8),
    )


CASES = {f"bfloat16, 4 layers, rank {rank}": partial(make, rank) for rank in (16, 32)}
