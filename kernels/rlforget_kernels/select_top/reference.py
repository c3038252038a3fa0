"""`select_top` in plain torch, by a full stable sort: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def select_top(scores: list[Tensor], count: int) -> list[Tensor]:
    """Indices of the `count` largest of valid scores (non-negative, no NaN, enough of them), ascending a tensor."""
    flat = torch.cat([score.reshape(-1) for score in scores])
    chosen = torch.sort(flat, descending=True, stable=True).indices[:count].sort().values
    picked, start = [], 0
    for score in scores:
        end = start + score.numel()
        picked.append(chosen[(chosen >= start) & (chosen < end)] - start)
        start = end
    return picked
