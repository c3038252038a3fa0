"""`delta_stats` with all its histograms, beside the same in torch, as a user would write it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES, changed_pair
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.delta_stats import EXPONENT_BINS, STEP_BINS, DeltaStats, delta_stats

DTYPES = (torch.float32, torch.float8_e4m3fn)
COUNTS = ("changed", "over_absolute", "over_relative")


def peer(before: Tensor, after: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    changed = old != new
    a, b = before.float(), after.float()
    size = (b - a).abs()
    over = [changed, size > 1e-5, size > 1e-3 * torch.maximum(a.abs(), b.abs())]
    size = size[changed]
    exponents = (size.frexp().exponent + 126).clamp(0, 255).bincount(minlength=EXPONENT_BINS)
    steps = (_rank(new[changed]) - _rank(old[changed])).abs().float().frexp().exponent.bincount(minlength=STEP_BINS)
    sums = torch.stack([size.double().sum(), size.double().square().sum(), size.max().double()])
    return torch.stack([mask.sum() for mask in over]), sums, exponents, steps


def _rank(bits: Tensor) -> Tensor:
    magnitude = bits.long() & torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, -magnitude, magnitude)


def make(share: float, dtype: torch.dtype, machine: Machine) -> Case:
    before, after = changed_pair(machine, share, dtype)
    sides = (before, after, as_bits(before), as_bits(after))

    def agree() -> bool:
        ours, (counts, sums, exponents, steps) = DeltaStats(*delta_stats(before, after)), peer(*sides)
        return (
            torch.equal(torch.stack([ours.count(name) for name in COUNTS]), counts)
            and torch.allclose(ours.sums, sums)
            and torch.equal(ours.exponents, exponents)
            and torch.equal(ours.steps, steps)
        )

    return Case(
        moved=2 * before.nbytes,
        ours=lambda: delta_stats(before, after),
        peers=torch_peers(peer, lambda: sides),
        agree=agree,
        ceiling="read",
        inputs=2 * before.nbytes,
    )


CASES = {f"bfloat16, {name} changed": partial(make, share, torch.bfloat16) for name, share in DENSITIES.items()}
CASES |= {f"{str(dtype).removeprefix('torch.')}, 1% changed": partial(make, 0.01, dtype) for dtype in DTYPES}
