"""`project_sparse` in plain torch, in float64: the truth that the backends are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project_sparse(
    indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False
) -> Tensor:
    """See `rlforget_kernels.project_sparse`."""
    rows, columns = indices.long() // max(shape[1], 1), indices.long() % max(shape[1], 1)
    core = (u[rows].double() * values.double()[:, None]).T @ v[columns].double()
    return core if float64 else core.to(torch.float32)
