"""`patch_` beside a check of the expected bits and `index_put_`."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES, changed_pair, lines_of
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.patch import patch_
from rlforget_kernels.sparse_delta import sparse_delta


def peer(bits: Tensor, where: Tensor, expected: Tensor, new: Tensor) -> None:
    if torch.equal(bits[where], expected):
        bits.index_put_((where,), new)


def make(share: float, machine: Machine) -> Case:
    before, after = changed_pair(machine, share)
    indices, old, new = sparse_delta(before, after)
    weight, theirs, where = before.clone(), as_bits(before).clone(), indices.long()
    sides, their_sides = (itertools.cycle([(old, new), (new, old)]) for _ in range(2))
    peers = torch_peers(peer, lambda: (theirs, where, *next(their_sides)))

    def ours() -> Tensor:
        return patch_(weight, indices, *next(sides))

    def agree() -> bool:
        same = True
        for goal in (after, before):
            ours()
            peers["torch"]()
            same &= torch.equal(as_bits(weight), as_bits(goal)) and torch.equal(theirs, as_bits(goal))
        return same

    return Case(
        moved=len(indices) * 10,
        ours=ours,
        peers=peers,
        agree=agree,
        least=indices.nbytes + old.nbytes + new.nbytes + 2 * lines_of(indices, 2),
    )


CASES = {f"bfloat16, {name} changed": partial(make, share) for name, share in DENSITIES.items()}
