"""`project` beside einsum of the difference: taken in the weights' dtype, and as ours, in float32.

The error is that of one layer's core, in the Frobenius norm, as a share of the core's.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.project import project

LAYERS = 24
CHANGE = 1e-3
"""The standard deviation of the change, that of the weights being 1."""


def layers(machine: Machine, count: int = LAYERS) -> tuple[list[Tensor], list[Tensor]]:
    """Square bfloat16 layers before and after a change."""
    side = max(math.isqrt(machine.elements // count) // 64 * 64, 64)
    random = torch.Generator(machine.device).manual_seed(0)
    before = [torch.randn(side, side, generator=random, device=machine.device).bfloat16() for _ in range(count)]
    change = torch.randn(side, side, generator=random, device=machine.device) * CHANGE
    return before, [(old.float() + change).bfloat16() for old in before]


def fine_tuned(machine: Machine, share: float) -> tuple[list[Tensor], list[Tensor]]:
    """The same layers before and after a change of `share` of their coordinates, each by its lowest bit."""
    before, _ = layers(machine)
    random = torch.Generator(machine.device).manual_seed(1)
    bits = [as_bits(old).clone() for old in before]
    for one in bits:
        one ^= torch.rand(len(one), generator=random, device=machine.device) < share
    return before, [one.view(torch.bfloat16).view(old.shape) for one, old in zip(bits, before, strict=True)]


def bases(rows: int, rank: int, count: int, device: torch.device) -> list[Tensor]:
    """Orthonormal columns."""
    random = torch.Generator(device).manual_seed(rank)
    drawn = [torch.randn(rows, rank, generator=random, device=device) for _ in range(count)]
    return [torch.linalg.qr(one)[0].contiguous() for one in drawn]


def peer(before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    lists = zip(before, after, u, v, strict=True)
    return [torch.einsum("or,oi,is->rs", left, (new - old).float(), right) for old, new, left, right in lists]


def exact_peer(before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    lists = zip(before, after, u, v, strict=True)
    return [torch.einsum("or,oi,is->rs", left, new.float() - old.float(), right) for old, new, left, right in lists]


def make(rank: int, share: float | None, machine: Machine) -> Case:
    before, after = layers(machine) if share is None else fine_tuned(machine, share)
    side, device = before[0].shape[0], machine.device
    rank = min(rank, side)
    u, v = bases(side, rank, LAYERS, device), bases(side, rank, LAYERS, device)
    wide = before[0].float()

    def agree() -> bool:
        cores, _ = project(before, after, u, v)
        pairs = zip(cores, exact_peer(before, after, u, v), strict=True)
        return all(bool((ours - theirs).norm() <= 1e-4 * theirs.norm()) for ours, theirs in pairs)

    def error() -> float:
        (core,), _ = project(before[:1], after[:1], u[:1], v[:1])
        exact = u[0].double().T @ (after[0].double() - before[0].double()) @ v[0].double()
        return float((core.double() - exact).norm() / exact.norm())

    narrow = torch_peers(peer, lambda: (before, after, u, v))
    peers = narrow | {
        "torch in float32": lambda: exact_peer(before, after, u, v),
        # No arithmetic but the product with V, of a float32 matrix that lies ready: what multiplying alone takes.
        "torch's product alone": lambda: [wide @ right for right in v],
    }
    size = sum(tensor.nbytes for tensor in (*before, *after))
    return Case(
        moved=size + sum(tensor.nbytes for tensor in (*u, *v)),
        ours=lambda: project(before, after, u, v),
        peers=peers,
        agree=agree,
        ceiling="read" if device.type == "cpu" else "copy",
        inputs=size,
        flops=LAYERS * (2 * side * side * rank + 2 * side * rank * rank),
        error=error,
    )


CASES = {f"bfloat16, 24 layers, rank {rank}": partial(make, rank, None) for rank in (16, 64, 256)}
CASES |= {
    f"bfloat16, 24 layers, rank 64, {name} changed": partial(make, 64, share) for name, share in DENSITIES.items()
}
