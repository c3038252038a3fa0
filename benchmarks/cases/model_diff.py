"""Diff and statistics of many small tensors at once, beside torch's, tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers_of_each
from benchmarks.harness import Case, Machine
from rlforget_kernels.delta_stats import COUNTS, foreach_delta_stats
from rlforget_kernels.sparse_delta import foreach_sparse_delta

CHANGED = 0.0114
TENSORS, SHAPE = 1000, (64, 64)


def changes(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find what changed in a bfloat16 tensor: where, and the bits on either side."""
    old, new = before.view(torch.int16).flatten(), after.view(torch.int16).flatten()
    where = (old != new).nonzero().squeeze(1)
    return where, old[where], new[where]


def moments(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure how large a change is: counted over a tolerance, summed, squared and at its largest."""
    size = (after.float() - before.float()).abs()
    return (size > 1e-5).sum(), size.sum(), size.square().sum(), size.max()


def agree(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether the operators and torch find the same changes, and as many over the tolerance."""
    found = foreach_sparse_delta(before, after)
    over = foreach_delta_stats(before, after)[0][:, COUNTS.index("over_absolute")]
    return all(
        all(map(torch.equal, map(Tensor.long, ours), map(Tensor.long, changes(*pair)))) and count == moments(*pair)[0]
        for pair, count, *ours in zip(zip(before, after, strict=True), over, *found, strict=True)
    )


def thousand(machine: Machine) -> Case:
    random = torch.Generator(machine.device).manual_seed(0)
    before, after = [], []
    for _ in range(20 if machine.quick else TENSORS):
        weight = torch.randn(SHAPE, generator=random, device=machine.device).bfloat16()
        chosen = torch.rand(SHAPE, generator=random, device=machine.device) < CHANGED
        before.append(weight)
        after.append((weight.view(torch.int16) ^ chosen.to(torch.int16)).view(torch.bfloat16))
    size = sum(tensor.nbytes for tensor in before)
    return Case(
        moved=2 * size,
        ours=lambda: (foreach_sparse_delta(before, after), foreach_delta_stats(before, after)),
        peers=torch_peers_of_each([changes, moments], lambda: zip(before, after, strict=True)),
        agree=lambda: agree(before, after),
        ceiling="read",
        inputs=2 * size,
    )


CASES = {"1000 tensors of 4 Ki, diff and stats": thousand}
