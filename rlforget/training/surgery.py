"""Per-tensor gradient surgery: of every step's gradient, what would raise another domain's loss is taken off.

Source: MGS (2602.02301), known to us by its rule: for each tensor with g_A · g_B < 0, the gradient g_B loses its part
along g_A. What stands for the domain's loss and how it is sampled is ours: −log π on completions that the model itself
gave at the start, so that g_A is zero in expectation there and grows as the model drifts from what it used to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.domains.sampling import evaluating
from rlforget.interference.completions import Batches, collect, completed, completion_log_probs

_AT_A_STEP = 16


class Surgery:
    """Takes off each gradient, tensor by tensor, what points against other domains' gradients.

    Each step takes the gradient of 16 of each domain's completions, in turn: a forward and backward pass a domain.

    Args:
        model: The model that is trained.
        protect: The domains to spare, one after another.
        samples: Completions a domain, sampled now.
        seed: Seed of prompts and completions.
        tokenizer: Encodes the domains' prompts.

    Raises:
        EmptyDomainError: A domain without prompts.
    """

    def __init__(
        self, model: nn.Module, protect: Sequence[Batches], *, samples: int, seed: int, tokenizer: Any
    ) -> None:
        self._model = model
        self._batches = [_completions(model, domain, samples, seed, tokenizer) for domain in protect]
        self._step = 0
        self._cosines: list[Tensor] = []

    def before_step(self) -> None:
        """Bend the gradients."""
        trained = [p for p in self._model.parameters() if p.grad is not None]
        self._cosines = []
        for batches in self._batches:
            batch = batches[self._step % len(batches)]
            for parameter, theirs in zip(trained, self._gradients(batch, trained), strict=True):
                if theirs is not None:
                    self._cosines.append(_bend(parameter, theirs))
        self._step += 1

    def after_step(self) -> None:
        """Do nothing: the gradients were bent."""

    def figures(self) -> dict[str, float]:
        """Return the mean and the least cosine over the tensors, and the share of tensors that were bent."""
        if not self._cosines:
            return {}
        cosines = torch.stack([cosine.cpu() for cosine in self._cosines])
        return {
            "cosine_mean": float(cosines.mean()),
            "cosine_least": float(cosines.min()),
            "tensors_bent": float((cosines < 0).float().mean()),
        }

    def _gradients(self, batch: dict[str, Tensor], trained: list[nn.Parameter]) -> Sequence[Tensor | None]:
        with torch.enable_grad(), evaluating(self._model):  # no dropout in what is protected
            loss = -completion_log_probs(self._model, batch).mean()
            found: Sequence[Tensor | None] = torch.autograd.grad(loss, trained, allow_unused=True)
            return found


def _completions(model: nn.Module, domain: Batches, samples: int, seed: int, tokenizer: Any) -> list[dict[str, Tensor]]:
    taken = collect(model, domain, samples=samples, seed=seed, tokenizer=tokenizer)
    return [
        {name: value[start : start + _AT_A_STEP] for name, value in batch.items()}
        for batch in completed(model, taken, seed=seed, tokenizer=tokenizer)
        for start in range(0, batch["input_ids"].shape[0], _AT_A_STEP)
    ]


def _bend(parameter: nn.Parameter, theirs: Tensor) -> Tensor:
    """Take off a parameter's gradient its part against `theirs`; return the cosine of the two, waiting for neither."""
    assert parameter.grad is not None
    ours, other = parameter.grad.detach().float().flatten(), theirs.float().flatten()
    length = other.norm()
    # A gradient without a finite direction bends nothing; squares of small ones would underflow.
    usable = torch.isfinite(length) & (length > 0)
    direction = torch.where(usable, other / length, torch.zeros_like(other))
    inner, size = ours @ direction, ours.norm()
    along = torch.where(inner < 0, inner, torch.zeros_like(inner))
    cosine = torch.where(size > 0, inner / size, torch.zeros_like(inner))
    parameter.grad.sub_((direction * along).view(parameter.shape).to(parameter.grad.dtype))
    return cosine
