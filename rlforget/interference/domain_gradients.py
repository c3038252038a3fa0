"""The gradients of two domains' losses at the present weights, compared module by module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlforget import domains
from rlforget.domains.sampling import completion_texts, special_tokens
from rlforget.errors import ConfigError, NonFiniteError
from rlforget.interference.alignment import Alignment, by_module, in_order
from rlforget.interference.completions import (
    Batches,
    collect,
    completed,
    completion_log_probs,
    tokenizer_of,
)
from rlforget.interference.sample_gradients import measuring
from rlforget.weights.sharding import check_unsharded

_ROWS_AT_ONCE = 16  # completions of one backward pass
Gradient = dict[str, Tensor]
"""By parameter: float32, of its shape."""


@dataclass(frozen=True)
class GradientAlignment:
    """How the gradients of two domains' losses lie to each other.

    A mean gradient is known as well as its samples allow, and what is not known looks orthogonal to everything. So each
    domain's gradient is also compared with itself, one half of the samples with the other: cosines near 0 there say
    that the ones between the domains are too small by as much.

    Attributes:
        modules: For each module, the two domains' gradients.
        first_halves: Likewise, the two halves of the first domain's samples.
        second_halves: The two halves of the second domain's.
        samples: How many completions of each domain went in.
    """

    modules: dict[str, Alignment]
    first_halves: dict[str, Alignment]
    second_halves: dict[str, Alignment]
    samples: tuple[int, int]

    @property
    def total(self) -> Alignment:
        """Over the whole model."""
        return Alignment.total(self.modules.values())

    def most(self, count: int = 5) -> tuple[list[str], list[str]]:
        """Return the most conflicting modules, and the most synergistic ones, each the strongest first."""
        order = in_order(self.modules)
        conflicting = [name for name in order if self.modules[name].dot < 0]
        working = [name for name in reversed(order) if self.modules[name].dot > 0]
        return conflicting[:count], working[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON; modules with the most conflicting first."""
        halves = (self.first_halves, self.second_halves)
        return {
            "samples": list(self.samples),
            "total": self.total.to_dict(),
            "halves": [Alignment.total(half.values()).cosine for half in halves],
            "modules": {
                name: {**self.modules[name].to_dict(), "halves": [half[name].cosine for half in halves]}
                for name in in_order(self.modules)
            },
        }


def gradient_alignment(
    model: nn.Module,
    first: Batches,
    second: Batches,
    *,
    samples: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
) -> GradientAlignment:
    """Compare the mean gradients of two domains' losses at the model's present weights.

    A domain's loss is minus its expected reward, whose gradient is estimated from completions of the model itself as
    −mean (R − baseline) ∇ log π(completion | prompt), the baseline of each being the others' mean reward (so that it is
    unbiased). The gradient of log π alone would be 0 but for the draws. Of completions that are given, with `labels`,
    it is −mean ∇ log π, as in SFT.

    Args:
        model: A transformers causal language model. It is left as it was found.
        first: A domain, its name, or batches with `labels` (see `Batches`).
        second: Likewise.
        samples: How many completions of each to take.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Memory: three float32 copies of the parameters. Inner products and norms are summed in float64.

    Raises:
        ConfigError: Batches without `labels`, fewer than four completions, or a domain whose completions all got the
            same reward.
        EmptyDomainError: There is no completion.
        NonFiniteError: A gradient is NaN or infinite; the message names the parameter.
    """
    check_unsharded(model, "gradient_alignment")
    found, halves, counts = [], [], []
    for batches in (first, second):
        scored = list(_scored(model, batches, samples=samples, seed=seed, tokenizer=tokenizer))
        count = sum(weight.numel() for _, weight in scored)
        if count < 4:
            fix = "Give more prompts or completions."
            raise ConfigError("samples", expected="at least 4 completions", found=str(count), fix=fix)
        one, other = _half_gradients(model, scored, count)
        halves.append(_aligned(one, other))
        for name, gradient in one.items():
            gradient += other.pop(name)
        found.append(one)
        counts.append(count)
    return GradientAlignment(_aligned(*found), halves[0], halves[1], (counts[0], counts[1]))


def _aligned(one: Gradient, other: Gradient) -> dict[str, Alignment]:
    return by_module({name: Alignment.of(gradient, other[name]) for name, gradient in one.items()})


def _scored(
    model: nn.Module, batches: Batches, *, samples: int, seed: int, tokenizer: Any
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield completions and, for each, the weight of its log-probability in the loss, float32 [B]."""
    if not isinstance(batches, str | domains.Domain):
        for batch in collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer):
            if "labels" not in batch:
                raise ConfigError(
                    "batches",
                    expected="a domain, whose reward is its loss, or batches with labels",
                    found="prompts without labels",
                    fix="Pass the domain itself, or completions to learn from.",
                )
            (whole,) = completed(model, [batch], seed=seed, tokenizer=tokenizer)
            yield whole, torch.full((whole["labels"].shape[0],), -1.0)
        return
    domain, tokenizer = domains.get(batches), tokenizer_of(model, tokenizer)
    prompts = collect(model, domain, samples=samples, seed=seed, tokenizer=tokenizer)
    drawn = list(completed(model, prompts, seed=seed, tokenizer=tokenizer))
    _, ends = special_tokens(model, tokenizer)
    texts = [text for batch in drawn for text in completion_texts(tokenizer, batch, ends)]
    examples = domain.examples(samples, seed=seed)
    rewards = torch.tensor([domain.checked_reward(e, text) for e, text in zip(examples, texts, strict=True)])
    if len(rewards) > 1 and bool((rewards == rewards[0]).all()):
        raise ConfigError(
            f"the domain {domain.name!r}",
            expected="completions with different rewards, which a gradient can tell apart",
            found=f"the reward {float(rewards[0]):.3g} for all {len(rewards)}",
            fix="Take more samples, or pass gold answers as batches with labels.",
        )
    weights = -(rewards - rewards.mean()) * len(rewards) / max(1, len(rewards) - 1)
    yield from zip(drawn, weights.split([b["labels"].shape[0] for b in drawn]), strict=True)  # type: ignore[no-untyped-call]


def _half_gradients(
    model: nn.Module, scored: list[tuple[dict[str, Tensor], Tensor]], count: int
) -> tuple[Gradient, Gradient]:
    """Return the two summands of the mean gradient that come from every other completion."""
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    halves = [{name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()} for _ in range(2)]
    with measuring(model):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for batch, weights in scored:
            for half, total in enumerate(halves):
                for rows in torch.arange(half, weights.numel(), 2).split(_ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
                    part = {name: value[rows.to(value.device)] for name, value in batch.items()}
                    log_probs = completion_log_probs(model, part)
                    loss = (log_probs * weights[rows].to(log_probs.device)).sum() / count
                    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                    for name, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            total[name] += gradient
    for name in parameters:
        if not all(bool(half[name].isfinite().all()) for half in halves):
            raise NonFiniteError(
                f"the gradient of {name!r}",
                expected="finite numbers",
                found="NaN or Inf",
                fix="Look for NaN or Inf in the weights, or use a dtype with a wider range.",
            )
    return halves[0], halves[1]
