"""`gradient_gram_` in plain torch, by the gradients themselves in float64: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_gram_(
    gram: Tensor,
    inputs: Tensor,
    gradients: Tensor,
    mask: Tensor | None = None,
    other_inputs: Tensor | None = None,
    other_gradients: Tensor | None = None,
    other_mask: Tensor | None = None,
    form: str = "auto",
) -> None:
    """See `rlforget_kernels.gradient_gram`."""
    sides = [(inputs, gradients, mask)]
    if other_inputs is not None and other_gradients is not None:
        sides.append((other_inputs, other_gradients, other_mask))
    features = max(_features(side[0]) for side in sides)
    rows = [_sample_gradients(*side, features).flatten(1) for side in sides]
    gram += rows[0] @ rows[-1].T


def _features(inputs: Tensor) -> int:
    if inputs.is_floating_point():
        return inputs.shape[2]
    return int(inputs.max()) + 1 if inputs.numel() else 0


def _sample_gradients(inputs: Tensor, gradients: Tensor, mask: Tensor | None, features: int) -> Tensor:
    """Return Σ_t y_t x_tᵀ of every sample, float64 [n, out, features]."""
    if not inputs.is_floating_point():
        inputs = torch.nn.functional.one_hot(inputs.long(), features)
    x, y = inputs.double(), gradients.double()
    if mask is not None:
        x, y = (torch.where(mask.unsqueeze(-1), side, 0.0) for side in (x, y))
    return torch.einsum("nto,nti->noi", y, x)
