"""Diff and statistics of all tensors of a model at once, tensors resident, beside torch's, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.checkpoint_pair import SHAPES
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from rlforget_kernels.delta_stats import COUNTS, foreach_delta_stats
from rlforget_kernels.sparse_delta import foreach_sparse_delta

CHANGED = 0.0114
THOUSAND = [(64, 64)] * 1000


def peer(before: list[Tensor], after: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    found, sums = [], []
    for a, b in zip(before, after, strict=True):
        old, new = a.view(torch.int16).flatten(), b.view(torch.int16).flatten()
        where = (old != new).nonzero().squeeze(1)
        size = (b.float() - a.float()).abs()
        found += [where, old[where], new[where]]
        sums += [(size > 1e-5).sum(), size.sum(), size.square().sum(), size.max()]
    return found, sums


def make(shapes: Sequence[tuple[int, ...]], machine: Machine) -> Case:
    random = torch.Generator(machine.device).manual_seed(0)
    before, after = [], []
    for shape in shapes:
        weight = torch.randn(shape, generator=random, device=machine.device).bfloat16()
        chosen = torch.rand(shape, generator=random, device=machine.device) < CHANGED
        before.append(weight)
        after.append((weight.view(torch.int16) ^ chosen.to(torch.int16)).view(torch.bfloat16))

    def ours() -> tuple[tuple[list[Tensor], ...], tuple[Tensor, ...]]:
        return foreach_sparse_delta(before, after), foreach_delta_stats(before, after)

    def agree() -> bool:
        (indices, old, new), (counts, *_) = ours()
        found, sums = peer(before, after)
        lists = zip(indices, old, new, strict=True)
        same = all(torch.equal(mine.long(), his.long()) for mine, his in zip(sum(lists, ()), found, strict=True))
        over = counts[:, COUNTS.index("over_absolute")]
        return same and torch.equal(over, torch.stack(sums[::4]))

    size = sum(tensor.nbytes for tensor in before)
    peers = torch_peers(peer, lambda: (before, after))
    del peers["torch.compile"]  # unrolls the loop over tensors, and compiles for minutes
    return Case(2 * size, ours, peers, agree, ceiling="read", inputs=2 * size)


def model(size: str, machine: Machine) -> Case:
    if machine.device.type == "cpu" and not machine.quick:
        pytest.skip("takes a device: on a CPU see how rf.diff does from files")
    shapes = SHAPES["tiny" if machine.quick else size].tensors()
    return make([dimensions for _, dimensions in shapes], machine)


def thousand(machine: Machine) -> Case:
    return make(THOUSAND[: 20 if machine.quick else None], machine)


CASES = {"3B, diff and stats": partial(model, "3b"), "1000 tensors of 4 Ki, diff and stats": thousand}
