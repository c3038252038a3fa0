"""`rollback_` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic import narrowed, widened
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.hashing import random_bits


def rollback_(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
    seed: int | None = None,
    offset: int = 0,
    by_share: bool = False,
) -> None:
    """See `rlforget_kernels.rollback`."""
    bits = as_bits(weight).clone()
    where = torch.arange(bits.numel(), device=bits.device) if indices is None else indices.long()
    now, old = bits[where], as_bits(before)
    new, chosen = old, now != old
    if score is not None and not by_share:
        chosen &= score.reshape(-1) >= torch.tensor(threshold, dtype=torch.float32, device=score.device)
    if strength != 1.0 or by_share:
        wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
        step = torch.tensor(strength, dtype=wide, device=now.device)
        noise = None if seed is None else random_bits(seed, where + offset)
        if by_share and score is not None:
            step = step * score.reshape(-1).to(wide)
            chosen &= step != 0
        new = _between(now.view(weight.dtype), old.view(weight.dtype), step, noise)
        new = torch.where(step == 1, old, new) if by_share else new
    bits[where] = torch.where(chosen, new, now)
    weight.copy_(bits.view(weight.dtype).reshape(weight.shape))


def _between(now: Tensor, old: Tensor, step: Tensor, noise: Tensor | None) -> Tensor:
    """The bits of now − step · (now − old), rounded once into the dtype of `now`."""
    wide = widened(now)
    return as_bits(narrowed(wide - step * (wide - widened(old)), now.dtype, noise))
