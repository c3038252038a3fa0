"""First-order estimates of what replacing a head's output costs, shared by the methods that take gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from rlforget.circuits.forward import answer_logits
from rlforget.circuits.trial import Trial
from rlforget.errors import ConfigError

PositionSum = Literal["dominant", "signed", "absolute"]
"""How a head's estimates at several positions become one number.

- `dominant`: the gains and the losses are summed apart, and the larger sum stands, with its sign: no cancelling.
- `signed`: the plain sum: the first-order estimate of replacing all positions at once, in which signs cancel.
- `absolute`: the sum of absolute values, without a sign.
"""


@torch.no_grad()
def differences(trial: Trial, number: int) -> list[Tensor]:
    """Return a(clean) − a(source) of each layer's heads in a batch, [B, T, heads, head_dim] in the model's dtype."""
    moved = _Differences(trial, number)
    batch = trial.batches[number]
    with moved.taken():
        trial.note_clean(number, trial.metric(answer_logits(trial.model, batch), batch))
    return moved.layers


def at_clean_prompts(trial: Trial, number: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return `differences`, and their `products` at the clean prompts, from one forward and one backward pass."""
    moved = _Differences(trial, number)
    with moved.taken():
        values, found = _measured_products(trial, number, moved.layers, range(trial.sites.layers))
    trial.note_clean(number, values)
    return moved.layers, found


def products(trial: Trial, number: int, differences: list[Tensor], layers: Sequence[int] | None = None) -> list[Tensor]:
    """Return differences · ∂metric/∂a at the point where the model is run: one [B, T, heads] float32 a layer.

    One forward and one backward pass. Each gradient is reduced as soon as it is there, so that none is kept; the
    parameters get none, and the graph begins at the first wanted layer's heads.

    Args:
        trial: The model and its task.
        number: The batch.
        differences: One tensor [B, T, heads, head_dim] a layer.
        layers: Which layers are wanted; by default all.
    """
    wanted = range(trial.sites.layers) if layers is None else layers
    return _measured_products(trial, number, differences, wanted)[1]


class _Differences:
    """a(clean) − a(source) of a batch, taken from whichever forward of the clean prompts comes.

    Attributes:
        layers: One tensor [B, T, heads, head_dim] a layer, once the forward is through.
    """

    def __init__(self, trial: Trial, number: int) -> None:
        self.layers = list(trial.replacement(number))
        self._sites, self._where = trial.sites, trial.where(number)[..., None, None]
        self._own = trial.ablation == "resample"  # other sources are shared by all batches

    def taken(self) -> AbstractContextManager[None]:
        """Take them from the forward of the block."""
        return self._sites.edited(self._take)

    def _take(self, layer: int, z: Tensor) -> Tensor:
        # In place where it may be: one copy of the heads' outputs is all that stays.
        source = self.layers[layer]
        moved = torch.sub(z.detach(), source, out=source if self._own else None)
        self.layers[layer] = moved.mul_(self._where)
        return z


def _measured_products(
    trial: Trial, number: int, differences: list[Tensor], wanted: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    batch, found = trial.batches[number], dict[int, Tensor]()

    def reduce(layer: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            found[layer] = (gradient.float() * differences[layer]).sum(-1)

        return hook

    def watch(layer: int, z: Tensor) -> Tensor:
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        z.register_hook(reduce(layer))  # type: ignore[no-untyped-call]
        return z

    with torch.enable_grad(), trial.sites.edited(watch, layers=wanted):
        values = trial.metric(answer_logits(trial.model, batch), batch)
    values.sum().backward()  # type: ignore[no-untyped-call]
    for layer in set(wanted) - found.keys():  # the metric does not depend on it
        found[layer] = torch.zeros(differences[layer].shape[:-1], device=differences[layer].device)
    return values, [found[layer] for layer in wanted]


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
