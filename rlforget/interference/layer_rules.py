"""Per-sample weight gradients of the layers that language models are made of, from inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# (module, its input [B, ..., in], the gradient at its output [B, ..., out]) -> for each of its parameters, by name, the
# gradient of every sample [B, *parameter.shape] in float32.
Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule for a module's own parameters, or None where there is none."""
    names = {name for name, parameter in module._parameters.items() if parameter is not None}
    if isinstance(module, nn.Linear) and names <= {"weight", "bias"}:
        return _linear
    if type(module).__name__ == "Conv1D" and names <= {"weight", "bias"}:
        return _transposed_linear
    if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq and module.max_norm is None:
        return _embedding
    if isinstance(module, nn.LayerNorm):
        return _layer_norm
    if type(module).__name__.endswith("RMSNorm") and names == {"weight"} and _epsilon(module) is not None:
        return _rms_norm
    return None


def _linear(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Y = X Wᵀ + b: Σ_t y_t x_tᵀ and Σ_t y_t."""
    x, y = _positions(given), _positions(gradient)
    return {"weight": torch.bmm(y.transpose(1, 2), x), "bias": y.sum(1)}


def _transposed_linear(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Y = X W + b, as GPT-2 stores it: Σ_t x_t y_tᵀ and Σ_t y_t."""
    x, y = _positions(given), _positions(gradient)
    return {"weight": torch.bmm(x.transpose(1, 2), y), "bias": y.sum(1)}


def _embedding(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Add each position's output gradient to its token's row; the padding token gets none, as in autograd."""
    module = cast(nn.Embedding, module)
    samples, rows = given.shape[0], module.num_embeddings
    y = _positions(gradient)
    tokens = given.reshape(samples, -1)
    if module.padding_idx is not None:
        y = y.masked_fill((tokens == module.padding_idx).unsqueeze(-1), 0.0)
    tokens = tokens + rows * torch.arange(samples, device=tokens.device).unsqueeze(1)  # a table for each sample
    # The backward of nn.Embedding itself: it sums in a fixed order on every device, which index_add_ does not.
    table = torch.ops.aten.embedding_dense_backward(y, tokens, samples * rows, -1, False)
    return {"weight": table.view(samples, rows, -1)}


def _layer_norm(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Y = w·x̂ + b: Σ_t y_t x̂_t and Σ_t y_t, over every dimension that the parameters do not have."""
    module = cast(nn.LayerNorm, module)
    x, y = given.float(), gradient.float()
    summed = list(range(1, x.dim() - len(module.normalized_shape)))
    unit = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    return {"weight": _sum(unit * y, summed), "bias": _sum(y, summed)}


def _rms_norm(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Y = w·x̂, or (1 + w)·x̂ as in Gemma: Σ_t y_t x̂_t."""
    x, y = given.float(), gradient.float()
    epsilon = _epsilon(module)
    assert epsilon is not None
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return {"weight": _sum(unit * y, list(range(1, x.dim() - 1)))}


def _epsilon(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return torch.finfo(torch.float32).eps if isinstance(module, nn.RMSNorm) else None


def _positions(values: Tensor) -> Tensor:
    """[B, ..., D] -> [B, T, D] float32."""
    return values.float().reshape(values.shape[0], -1, values.shape[-1])


def _sum(values: Tensor, dimensions: list[int]) -> Tensor:
    return values.sum(dimensions) if dimensions else values  # an empty list would sum everything
