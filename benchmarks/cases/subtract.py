"""`subtract_` beside the same arithmetic in torch."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import changed_pair, floats
from rlforget_kernels.subtract import subtract_


def nearest(weight: Tensor, u: Tensor) -> None:
    weight.copy_(weight.float() - u)


def stochastic(weight: Tensor, u: Tensor) -> None:
    difference = weight.float() - u
    noise = torch.randint(0, 1 << 16, difference.shape, dtype=torch.int32, device=weight.device)
    weight.copy_((difference.view(torch.int32) + noise & -(1 << 16)).view(torch.float32))


def make(seed: int | None, machine: Machine) -> Case:
    (u,) = floats(machine)
    weight = changed_pair(machine, 0)[0]
    theirs = weight.clone()
    changes, their_changes = itertools.cycle([u, -u]), itertools.cycle([u, -u])
    peers = torch_peers(nearest if seed is None else stochastic, lambda: (theirs, next(their_changes)))

    def ours() -> None:
        subtract_(weight, next(changes), seed)

    def agree() -> bool:
        ours()
        peers["torch"]()
        # Drawn apart, two results may be neighbours.
        return torch.equal(weight, theirs) if seed is None else torch.allclose(weight, theirs, rtol=2**-6, atol=1e-3)

    return Case(
        moved=2 * weight.nbytes + u.nbytes, ours=ours, peers=peers, agree=agree, inputs=weight.nbytes + u.nbytes
    )


CASES = {"bfloat16, nearest": partial(make, None), "bfloat16, stochastic": partial(make, 3)}
