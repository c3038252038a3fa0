"""Second moments of what meets the rows and the columns of every linear layer's weight, streamed in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from rlforget.errors import NonFiniteError
from rlforget.interference.completions import Batch, completed
from rlforget.interference.covariance import Covariance
from rlforget.interference.gradient_factors import factors_rule_for
from rlforget.interference.sample_gradients import layer_calls, measuring

_BYTES_AT_ONCE = 1 << 30  # of the inputs and output gradients of all layers


class Moments(NamedTuple):
    """The second moments whose Kronecker product is the curvature of one weight: R of its rows, C of its columns."""

    rows: Covariance
    columns: Covariance


def linear_layers(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, str]:
    """Return the linear layers that alone own one of `parameters` as their weight, with its name."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(module)
    owners: dict[nn.Module, str] = {}
    for module in model.modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        weight = module._parameters.get("weight")
        if linear and factors_rule_for(module) and id(weight) in names and len(users[id(weight)]) == 1:
            owners[module] = names[id(weight)]
    return owners


def second_moments(
    model: nn.Module,
    owners: Mapping[nn.Module, str],
    domains: Sequence[list[Batch]],
    weights: Sequence[float],
    *,
    seed: int,
    tokenizer: Any,
) -> dict[str, Moments]:
    """Average both moments of every weight over the completions of some domains, streamed through the model.

    Args:
        model: The model, at the weights where completions are sampled and gradients taken.
        owners: The layers, and the names of their weights.
        domains: For each domain its batches.
        weights: What each domain's completions count.
        seed: Seed of the completions, and of sketches.
        tokenizer: Names the padding and the end token.

    Returns:
        For each weight that the completions depend on, the moments: of the columns an average over scored positions,
        of the rows a sum over a completion's, averaged over completions, so that R ⊗ C is a completion's.

    Raises:
        NonFiniteError: An activation or a gradient is NaN or infinite; the message names the weight.
    """
    moments: dict[str, Moments] = {}
    positions: dict[str, float] = {}
    completions = 0
    held = max(1, sum(map(_bytes_a_position, owners)))
    for batches, weight in zip(domains, weights, strict=True):
        for batch in completed(model, batches, seed=seed, tokenizer=tokenizer):
            size = max(1, _BYTES_AT_ONCE // (batch["input_ids"].shape[1] * held))
            for start in range(0, batch["input_ids"].shape[0], size):
                part = {name: value[start : start + size] for name, value in batch.items()}
                completions += part["input_ids"].shape[0]
                with measuring(model):
                    _, calls = layer_calls(model, owners, part)
                for module, given, gradient in calls:
                    name, rule = owners[module], factors_rule_for(module)
                    assert rule is not None
                    factors = rule(module, given, gradient)["weight"]
                    mask = slice(None) if factors.mask is None else factors.mask
                    rows, columns = (side[mask].flatten(0, -2) for side in (factors.rows, factors.columns))
                    if name not in moments:
                        moments[name] = Moments(
                            *(Covariance(v.shape[-1], v.device, seed=seed) for v in (rows, columns))
                        )
                    moments[name].rows.add_(rows, weight)
                    moments[name].columns.add_(columns, weight)
                    positions[name] = positions.get(name, 0.0) + weight * rows.shape[0]
    for name, one in moments.items():
        if not (one.rows.finite and one.columns.finite):
            raise NonFiniteError(
                f"the gradients of {name!r}",
                expected="finite numbers",
                found="NaN or Inf in the layer's inputs or in the gradients at its outputs",
                fix="Look for NaN or Inf in the weights on either side of the delta.",
            )
        one.rows.scale_(1 / completions)
        one.columns.scale_(1 / (positions[name] or 1.0))
    return moments


def _bytes_a_position(layer: nn.Module) -> int:
    weight = layer._parameters["weight"]
    assert weight is not None
    return sum(weight.shape) * weight.element_size()
