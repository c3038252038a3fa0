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
) -> None:
    """See `rlforget_kernels.rollback`."""
    bits = as_bits(weight).clone()
    where = torch.arange(bits.numel(), device=bits.device) if indices is None else indices.long()
    now, old = bits[where], as_bits(before)
    new = old
    if strength != 1.0:
        noise = None if seed is None else random_bits(seed, where + offset)
        new = _between(now.view(weight.dtype), old.view(weight.dtype), strength, noise)
    chosen = now != old
    if score is not None:
        chosen &= score.reshape(-1) >= torch.tensor(threshold, dtype=torch.float32, device=score.device)
    bits[where] = torch.where(chosen, new, now)
    weight.copy_(bits.view(weight.dtype).reshape(weight.shape))


def _between(now: Tensor, old: Tensor, strength: float, noise: Tensor | None) -> Tensor:
    """The bits of now − strength · (now − old), rounded once into the dtype of `now`."""
    wide = widened(now)
    share = torch.tensor(strength, dtype=wide.dtype, device=wide.device)
    return as_bits(narrowed(wide - share * (wide - widened(old)), now.dtype, noise))
