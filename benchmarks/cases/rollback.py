"""`rollback_` beside the same arithmetic in torch: of all that changed, and at the coordinates that a delta names.

Where most lines of memory hold a change, and so are written too, the ceiling on a CPU is that of a task that writes:
the faster of a copy and a pass in place, of as many bytes. "a read of both inputs" is timed in turns with it, and is
what the bar is about.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from benchmarks.ceiling import passes
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES, changed_pair, lines_of
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.rollback import rollback_
from rlforget_kernels.sparse_delta import sparse_delta

READ = "a read of both inputs"


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

    written = lines_of((as_bits(before) != as_bits(after)).nonzero().squeeze(1), before.itemsize)
    mostly = 2 * written > weight.nbytes  # lines of memory
    if machine.device.type == "cpu":
        (peers[READ],) = passes("read", 2 * weight.nbytes, machine.device)
    return Case(
        moved=2 * weight.nbytes + int(share * weight.nbytes),
        ours=ours,
        peers=peers,
        agree=agree,
        ceiling="copy" if mostly else "read",
        least=2 * weight.nbytes + (written if mostly else 0),
        inputs=2 * weight.nbytes,
    )


def whole_at(weight: Tensor, where: Tensor, goal: Tensor) -> None:
    weight[where] = goal


def half_way_at(weight: Tensor, where: Tensor, goal: Tensor) -> None:
    now = weight[where].float()
    weight[where] = (now - 0.5 * (now - goal.float())).to(weight.dtype)


def at_coordinates(share: float, strength: float, machine: Machine) -> Case:
    before, after = changed_pair(machine, share)
    indices, old, new = sparse_delta(before, after)
    where, sides = indices.long(), [side.view(before.dtype) for side in (old, new)]
    weight, theirs = after.clone(), after.clone()
    goals, their_goals = itertools.cycle(sides), itertools.cycle(sides)
    peers = torch_peers(whole_at if strength == 1.0 else half_way_at, lambda: (theirs, where, next(their_goals)))

    def ours() -> None:
        rollback_(weight, next(goals), indices, strength=strength)

    def agree() -> bool:
        ours()
        peers["torch"]()
        return torch.equal(as_bits(weight), as_bits(theirs))

    return Case(
        moved=indices.nbytes + 3 * old.nbytes,
        ours=ours,
        peers=peers,
        agree=agree,
        least=indices.nbytes + old.nbytes + 2 * lines_of(indices, before.itemsize),
        inputs=indices.nbytes + old.nbytes + weight.nbytes,
    )


CASES = {
    f"bfloat16, {name}, {changed} changed": partial(make, share, strength, None)
    for name, strength in (("half way", 0.5), ("whole", 1.0))
    for changed, share in DENSITIES.items()
}
CASES |= {
    f"bfloat16, half way by chance, {changed} changed": partial(make, DENSITIES[changed], 0.5, 3)
    for changed in ("0.2%", "5%", "90%")
}
CASES |= {
    f"bfloat16, {name}, at {changed} of the coordinates": partial(at_coordinates, DENSITIES[changed], strength)
    for name, strength in (("half way", 0.5), ("whole", 1.0))
    for changed in ("1%", "5%")
}
