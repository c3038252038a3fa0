"""`project_rollback_` in plain torch, its correction in float64: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.project.reference import project
from rlforget_kernels.subtract.reference import subtract_


def correction(weight: Tensor, before: Tensor, u: Tensor, v: Tensor, shrinkage: Tensor) -> Tensor:
    """U (S ∘ Uᵀ (weight − before) V) Vᵀ, float64."""
    (core,), _ = project([before], [weight], [u], [v], float64=True)
    product: Tensor = u.double() @ (shrinkage.double() * core) @ v.double().T
    return product


def project_rollback_(
    weight: Tensor,
    before: Tensor,
    u: Tensor,
    v: Tensor,
    shrinkage: Tensor,
    seed: int | None = None,
    offset: int = 0,
) -> None:
    """See `rlforget_kernels.project_rollback`."""
    subtract_(weight, correction(weight, before, u, v, shrinkage).to(torch.float32), seed, offset)
