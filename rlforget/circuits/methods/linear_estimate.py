"""First-order estimates of what replacing a head's output costs, shared by the methods that take gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rlforget.circuits.ablation import Sources
from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.metrics import Metric
from rlforget.circuits.task import TaskBatch
from rlforget.errors import ConfigError

PositionSum = Literal["dominant", "signed", "absolute"]
"""How a head's estimates at several positions become one number.

- `dominant`: the gains and the losses are summed apart, and the larger sum stands, with its sign: no cancelling.
- `signed`: the plain sum: the first-order estimate of replacing all positions at once, in which signs cancel.
- `absolute`: the sum of absolute values, without a sign.
"""


@torch.no_grad()
def differences(model: nn.Module, sites: HeadSites, sources: Sources, batch: TaskBatch) -> list[Tensor]:
    """Return a(clean) − a(source) of each layer's heads, [B, T, heads, head_dim] in the model's dtype."""
    replacement = sources.of(batch)
    with sites.capture() as found:
        answer_logits(model, batch)
    where = sources.replaced(batch)[..., None, None]
    # In place: one copy of the heads' outputs is all that stays.
    return [z.sub_(new).mul_(where) for z, new in zip(found, replacement, strict=True)]


def products(
    model: nn.Module,
    sites: HeadSites,
    batch: TaskBatch,
    metric: Metric,
    differences: list[Tensor],
    layers: Sequence[int] | None = None,
) -> list[Tensor]:
    """Return differences · ∂metric/∂a at the point where the model is run: one [B, T, heads] float32 a layer.

    One forward and one backward pass. Each gradient is reduced as soon as it is there, so that none is kept; the
    parameters get none, and the graph begins at the first wanted layer's heads.

    Args:
        layers: Which layers are wanted; by default all.
    """
    wanted = range(sites.layers) if layers is None else layers
    found: dict[int, Tensor] = {}

    def reduce(layer: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            found[layer] = (gradient.float() * differences[layer]).sum(-1)

        return hook

    def watch(layer: int, z: Tensor) -> Tensor:
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        z.register_hook(reduce(layer))  # type: ignore[no-untyped-call]
        return z

    with torch.enable_grad(), sites.edited(watch, layers=wanted):
        total = metric(answer_logits(model, batch), batch).sum()
    total.backward()  # type: ignore[no-untyped-call]
    for layer in set(wanted) - found.keys():  # the metric does not depend on it
        found[layer] = torch.zeros(differences[layer].shape[:-1], device=differences[layer].device)
    return [found[layer] for layer in wanted]


def over_positions(values: Tensor, how: PositionSum) -> Tensor:
    """Combine [..., T, heads] over positions T.

    Raises:
        ConfigError: An unknown way.
    """
    if how == "signed":
        return values.sum(-2)
    if how == "absolute":
        return values.abs().sum(-2)
    if how == "dominant":
        gains, losses = values.clamp_min(0).sum(-2), values.clamp_max(0).sum(-2)
        return torch.where(gains >= -losses, gains, losses)
    raise ConfigError(
        "position_sum",
        expected="'dominant', 'signed' or 'absolute'",
        found=repr(how),
        fix="Use 'dominant', in which signs do not cancel.",
    )
