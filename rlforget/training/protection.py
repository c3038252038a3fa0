"""A refresh that spares other domains: each optimizer step is bent away from what they depend on.

Both ways are this project's own. `project` is a gradient projection in the manner of 2602.02301 and of orthogonal
gradient descent, with the other domains' per-sample gradients at the start as the directions to leave alone; it acts on
the optimizer's step and not on the gradient, so that AdamW's scaling cannot turn it back. `fisher` shortens the step at
every coordinate by how much the other domains depend on it, as the pull of elastic weight consolidation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlforget.domains import Domain
from rlforget.errors import ConfigError, NonFiniteError, UnknownNameError
from rlforget.interference.sample_gradients import Column
from rlforget.training.span import (
    Span,
    gradient_rows,
    squared_gradients,
    values_of,
    whole_columns,
    write_values,
)

Protection = Literal["project", "fisher"]
PROTECTIONS: tuple[Protection, ...] = ("project", "fisher")

Bend = Callable[[Tensor], Tensor]
"""What becomes of an optimizer step, float32 [N]."""


def protecting(
    model: nn.Module,
    tokenizer: Any,
    protect: Sequence[str | Domain],
    kind: Protection = "project",
    *,
    samples: int = 256,
    lam: float = 1.0,
    rank: int | None = None,
    seed: int = 0,
) -> Any:
    """Build the `TrainerCallback` that spares other domains' present skill, for `train_stage(callbacks=[...])`.

    `project`: of each step, the part in the span of the domains' per-sample gradients is taken off. `fisher`: each step
    is scaled by 1 / (1 + λ F / mean F), with F the sum over the domains of their diagonal Fishers, each over its mean.
    Both are measured now, on completions sampled from the model. Into a 16-bit parameter the bent step is rounded to
    nearest, which puts a rounding's worth of it back.

    Args:
        model: The model that is going to be trained, all of it: an adapter is not bent.
        tokenizer: Its tokenizer.
        protect: The domains to spare.
        kind: How.
        samples: Completions a domain. `project` holds a gradient for each: 4 bytes × samples × domains × parameters.
        lam: λ of `fisher`.
        rank: For `project`, leave only this many directions alone, those of the largest eigenvalues; None: all.
        seed: Seed of prompts and completions.

    Raises:
        ConfigError: No domain to protect, or a λ that is not positive.
        EmptyDomainError: A domain without prompts.
        NonFiniteError: Gradients that are all zero, or not finite.
        UnknownNameError: There is no such kind or domain.
    """
    if kind not in PROTECTIONS:
        raise UnknownNameError(
            f"protection {kind!r}", expected=f"one of {', '.join(PROTECTIONS)}", found=repr(kind), fix="Check it."
        )
    if not protect:
        raise ConfigError("protect", expected="one domain or more", found="none", fix="Name a domain to spare.")
    if not lam > 0:
        raise ConfigError("lam", expected="a positive number", found=str(lam), fix="Give another lam=.")
    columns = whole_columns(model)
    bend = (
        _projected(model, columns, protect, samples, rank, seed, tokenizer)
        if kind == "project"
        else _shortened(model, columns, protect, samples, lam, seed, tokenizer)
    )
    return _as_callback(columns, bend)


def _projected(
    model: nn.Module,
    columns: Mapping[str, Column],
    protect: Sequence[str | Domain],
    samples: int,
    rank: int | None,
    seed: int,
    tokenizer: Any,
) -> Bend:
    stacks = [
        gradient_rows(model, columns, domain, samples=samples, seed=seed, tokenizer=tokenizer) for domain in protect
    ]
    for rows in stacks:  # of one size, so that no domain's directions drown among another's
        rows /= rows.norm().clamp_min(torch.finfo(torch.float32).tiny)
    span = Span(torch.cat(stacks) if len(stacks) > 1 else stacks[0], rank)
    return lambda step: step - span.part(step)


def _shortened(
    model: nn.Module,
    columns: Mapping[str, Column],
    protect: Sequence[str | Domain],
    samples: int,
    lam: float,
    seed: int,
    tokenizer: Any,
) -> Bend:
    total = torch.zeros(())
    for domain in protect:
        fisher = squared_gradients(model, columns, domain, samples=samples, seed=seed, tokenizer=tokenizer)
        mean = float(fisher.double().mean())
        if not 0 < mean < float("inf"):
            raise NonFiniteError(
                f"the Fisher of {domain if isinstance(domain, str) else domain.name!r}",
                expected="a positive mean, to divide by",
                found=f"a mean of {mean}",
                fix="Look for NaN or Inf in the model's weights, and that the domain's completions are not empty.",
            )
        total = total.to(fisher.device) + fisher / mean
    scale = 1.0 / (1.0 + lam * total * (total.numel() / total.double().sum()).float())
    return lambda step: step * scale


def _as_callback(columns: Mapping[str, Column], bend: Bend) -> Any:
    from transformers import TrainerCallback

    class _Bent(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            self.start = values_of(columns)

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            write_values(columns, self.start + bend(values_of(columns) - self.start))

    return _Bent()
