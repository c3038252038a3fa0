"""Σ y_i ∇ log π_i over many rows, by one weighted backward pass: a combination of gradients that are never apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.rows import Rows
from rlforget.interference.sample_gradients import Column, measuring


def add_weighted_gradient_(
    total: Tensor, model: nn.Module, columns: Mapping[str, Column], blocks: Iterable[tuple[Rows, Tensor]]
) -> None:
    """Add Σ_i y_i w_i ∇ Σ log π(label) to `total`, in place; w is the rows' own weight.

    The gradient of a block is in the parameters' dtype, blocks are summed in float32. A parameter's gradient is added
    and let go as soon as it is there. Weights are brought to at most 1 meanwhile, which a half-precision backward pass
    can carry as well as the log-probabilities' own gradients.

    Args:
        total: float32 [width], on the model's device.
        model: A causal language model. Its parameters' `grad` and `requires_grad` are left as found.
        columns: Where each parameter's gradient stands, whole.
        blocks: Rows, and y for each of them [B].

    Raises:
        NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
    """
    kept = {name: column.parameter.grad for name, column in columns.items()}
    scale = 1.0

    def add(name: str, column: Column) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            if not bool(gradient.isfinite().all()):
                raise NonFiniteError(
                    f"the gradient of {name!r}",
                    expected="finite numbers",
                    found=f"NaN or Inf in {int((~gradient.isfinite()).sum())} entries",
                    fix="Look for NaN or Inf in the weights, and for activations beyond the range of their dtype.",
                )
            total[column.span].add_(gradient.flatten(), alpha=scale)

        return hook

    with measuring(model), ExitStack() as back:
        for name, column in columns.items():
            back.callback(setattr, column.parameter, "grad", kept[name])
            column.parameter.grad = None
            column.parameter.requires_grad_(True)
            hook = column.parameter.register_post_accumulate_grad_hook(add(name, column))  # type: ignore[no-untyped-call]
            back.callback(hook.remove)
        for rows, weights in blocks:
            factor = weights * rows["weight"].to(weights.device)
            scale = float(factor.abs().max())
            if scale == 0.0:
                continue
            log_probs = completion_log_probs(model, rows)
            torch.dot(log_probs, (factor / scale).to(log_probs)).backward()  # type: ignore[no-untyped-call]
