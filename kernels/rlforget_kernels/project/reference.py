"""`project` in plain torch, in float64: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.delta_matmul.reference import difference


def project(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.project`."""
    differences = [difference(*pair, float64) for pair in zip(before, after, strict=True)]
    cores = [left.double().T @ delta @ right.double() for left, delta, right in zip(u, differences, v, strict=True)]
    energy = [
        torch.stack([delta.square().sum(), core.square().sum()]) for delta, core in zip(differences, cores, strict=True)
    ]
    return [core if float64 else core.to(torch.float32) for core in cores], torch.stack(energy)
