"""Per-sample gradients as what they are products of: small enough to keep where the gradients are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlforget.interference.layer_rules import rule_for
from rlforget_kernels.gradient_gram import DTYPES, gradient_gram_


@dataclass(frozen=True)
class Factors:
    """The gradients of some samples for one parameter, a matrix: Σ_t r_t c_tᵀ for each of them.

    Attributes:
        rows: r, [B, T, rows]; or [B, T] the positions of its one 1, integers.
        columns: c, [B, T, columns].
        mask: bool [B, T]: the positions that count; None counts all.
    """

    rows: Tensor
    columns: Tensor
    mask: Tensor | None = None


Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Factors]]


def factors_rule_for(module: nn.Module) -> Rule | None:
    """Return the rule for a module's own parameters, or None where there is none.

    A rule takes the module, its input [B, ..., in] and the gradient at its output [B, ..., out], and returns the
    factors of each of its parameters by name.
    """
    if rule_for(module) is None:
        return None
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, nn.Embedding):
        return _embedding
    if type(module).__name__ == "Conv1D":
        return _transposed_linear
    return _small


def whole(gradients: Tensor) -> Factors:
    """Return factors for gradients themselves, [B, ...]."""
    rows = gradients.flatten(1).float().unsqueeze(1)
    return Factors(rows, rows.new_ones(rows.shape[0], 1, 1))


def stacked(parts: Sequence[Factors]) -> Factors:
    """Put the samples of several blocks one under the other; positions that a block does not have count for nothing."""
    longest = max(part.columns.shape[1] for part in parts)
    if all(part.mask is None and part.columns.shape[1] == longest for part in parts):
        return Factors(torch.cat([part.rows for part in parts]), torch.cat([part.columns for part in parts]))

    def padded(values: Tensor) -> Tensor:
        missing = longest - values.shape[1]
        return functional.pad(values, (*[0, 0] * (values.dim() - 2), 0, missing)) if missing else values

    masks = [part.columns.new_ones(part.columns.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
             for part in parts]  # fmt: skip
    rows, columns, mask = (
        torch.cat([padded(one) for one in several])
        for several in ([part.rows for part in parts], [part.columns for part in parts], masks)
    )
    return Factors(rows, columns, mask)


def add_gram_(gram: Tensor, left: list[Factors], right: list[Factors] | None = None) -> None:
    """Add the inner products of one parameter's gradients to `gram`, in place.

    Args:
        gram: float64 [n, m].
        left: The parameter's gradients for the samples of the rows: the sum of these.
        right: Those for the samples of the columns; None: the same as `left`.
    """
    if right is None:
        for position, one in enumerate(left):
            gradient_gram_(gram, one.rows, one.columns, one.mask)
            for other in left[:position]:  # a weight that is used more than once
                crossed = torch.zeros_like(gram)
                _add_product(crossed, one, other)
                gram += crossed + crossed.T
        return
    for one in left:
        for other in right:
            _add_product(gram, one, other)


def _add_product(gram: Tensor, one: Factors, other: Factors) -> None:
    gradient_gram_(gram, one.rows, one.columns, one.mask, other.rows, other.columns, other.mask)


def _linear(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Factors]:
    """Y = X Wᵀ + b: Σ_t y_t x_tᵀ and Σ_t y_t."""
    x, y = _positions(given), _positions(gradient)
    return {"weight": Factors(y, x, _counted(y)), **_bias(module, y)}


def _transposed_linear(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Factors]:
    """Y = X W + b, as GPT-2 stores it: Σ_t x_t y_tᵀ and Σ_t y_t."""
    x, y = _positions(given), _positions(gradient)
    return {"weight": Factors(x, y, _counted(y)), **_bias(module, y)}


def _bias(module: nn.Module, y: Tensor) -> dict[str, Factors]:
    return {} if module.bias is None else {"bias": whole(y.float().sum(1))}


def _embedding(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Factors]:
    """Each position's gradient goes to its token's row; the padding token's goes nowhere, as in autograd."""
    module = cast(nn.Embedding, module)
    tokens, y = given.reshape(given.shape[0], -1), _positions(gradient)
    counted = _counted(y)
    if module.padding_idx is not None:
        counted &= tokens != module.padding_idx
    return {"weight": Factors(tokens, y, counted)}


def _small(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Factors]:
    """Norms: their gradients are as small as an activation."""
    rule = rule_for(module)
    assert rule is not None
    return {name: whole(value) for name, value in rule(module, given, gradient).items()}


def _positions(values: Tensor) -> Tensor:
    """[B, ..., D] -> [B, T, D] of a dtype that the kernel takes."""
    values = values if values.dtype in DTYPES else values.float()
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _counted(gradient: Tensor) -> Tensor:
    """Positions that the completion depends on: neither padding nor, near the output, the prompt. [B, T] bool."""
    return gradient.ne(0).any(-1)
