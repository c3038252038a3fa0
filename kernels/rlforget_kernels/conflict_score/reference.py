"""`conflict_score` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic import narrowed
from rlforget_kernels.common.hashing import random_words, shift_right
from rlforget_kernels.common.score_bits import leading_counts


def conflict_score(
    delta: Tensor,
    score: str,
    earlier: Tensor | None = None,
    later: Tensor | None = None,
    direction: Tensor | None = None,
    damping: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `rlforget_kernels.conflict_score`."""
    values = _formula(delta, score, earlier, later, direction, damping, seed, offset)
    values = narrowed(torch.where(values <= 0, torch.zeros_like(values), values), torch.float32)
    return values, leading_counts(values)


def _formula(
    delta: Tensor,
    score: str,
    earlier: Tensor | None,
    later: Tensor | None,
    direction: Tensor | None,
    damping: float,
    seed: int,
    offset: int,
) -> Tensor:
    if score == "magnitude":
        return delta.abs()
    if score == "random":
        words = random_words(seed, offset, delta.numel(), delta.device).reshape(delta.shape)
        return shift_right(words, 40).to(torch.float32) * 2.0**-24
    if score in ("opposed", "subspace"):
        assert direction is not None
        product = direction * delta
        return -product if score == "opposed" else product
    assert earlier is not None
    quadratic = earlier * delta * delta
    if score == "fisher":
        return quadratic
    if score == "taylor":
        assert direction is not None
        return direction * delta + 0.5 * quadratic
    assert later is not None
    damped = later + torch.tensor(damping, dtype=torch.float32, device=delta.device)
    # 0/0: a coordinate that the earlier domain does not feel has nothing to regain.
    return torch.where((quadratic == 0) & (damped == 0), torch.zeros_like(quadratic), quadratic / damped)
