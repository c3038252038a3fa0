"""`rollback_` beside the same arithmetic in torch."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import changed_pair
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.rollback import rollback_


def half_way(weight: Tensor, goal: Tensor) -> None:
    now = weight.float()
    weight.copy_(now - 0.5 * (now - goal.float()))


def whole(weight: Tensor, goal: Tensor) -> None:
    bits, old = as_bits(weight), as_bits(goal)
    where = (bits != old).nonzero().squeeze(1)
    bits[where] = old[where]


def make(share: float, strength: float, seed: int | None, machine: Machine) -> Case:
    before, after = changed_pair(machine, share)
    weight, theirs = after.clone(), after.clone()
    goals, their_goals = itertools.cycle([before, after]), itertools.cycle([before, after])
    peers = torch_peers(whole if strength == 1.0 else half_way, lambda: (theirs, next(their_goals)))

    def ours() -> None:
        rollback_(weight, next(goals), strength=strength, seed=seed)

    def agree() -> bool:
        ours()
        peers["torch"]()
        # By chance half of what is half way between two neighbours goes to each.
        apart = (as_bits(weight).int() - as_bits(theirs).int()).abs().max()
        return bool(apart <= 1) if seed is not None else torch.equal(as_bits(weight), as_bits(theirs))

    return Case(
        moved=2 * weight.nbytes + int(share * weight.nbytes),
        ours=ours,
        peers=peers,
        agree=agree,
        ceiling="read",
        inputs=2 * weight.nbytes,
    )


SHARES = {"0.2%": 0.002, "5%": 0.05, "90%": 0.9}
CASES = {
    f"bfloat16, {name}, {changed} changed": partial(make, share, strength, seed)
    for name, strength, seed in (("half way", 0.5, None), ("half way by chance", 0.5, 3), ("whole", 1.0, None))
    for changed, share in SHARES.items()
}
