"""Training that spares other domains: each optimizer step is bent away from what they depend on.

`project` is a gradient projection in the manner of orthogonal gradient descent, with the other domains' per-sample
gradients at the start as the directions to leave alone; it acts on the optimizer's step and not on the gradient, so
that AdamW's scaling cannot turn it back. `fisher` shortens the step at every coordinate by how much the other domains
depend on it, as the pull of elastic weight consolidation does. Both are this project's own. `surgery`, per-tensor
gradient surgery, is in `surgery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError, NonFiniteError, UnknownNameError
from rlforget.interference.completions import Batches
from rlforget.interference.sample_gradients import Column
from rlforget.training.span import (
    Span,
    gradient_rows,
    squared_gradients,
    values_of,
    whole_columns,
    write_values,
)

Protection = Literal["project", "fisher", "surgery"]
PROTECTIONS: tuple[Protection, ...] = get_args(Protection)

Bend = Callable[[Tensor], Tensor]
"""What becomes of an optimizer step, float32 [N]."""


class Guard(Protocol):
    """What stands around every optimizer step."""

    def before_step(self) -> None:
        """Act on the gradients, which are complete and clipped."""

    def after_step(self) -> None:
        """Act on the parameters, which the optimizer has moved."""

    def figures(self) -> dict[str, float]:
        """Return what it did at the last step, by name."""


def protecting(
    model: nn.Module,
    tokenizer: Any,
    protect: Sequence[Batches],
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
    nearest, which puts a rounding's worth of it back. `surgery`: of each gradient, tensor by tensor, what points
    against the domains' present gradients is taken off; see `Surgery`.

    Args:
        model: The model that is going to be trained. Frozen parameters stay as they are; under an adapter that is made
            later, as `train_stage` makes one, nothing of it is bent.
        tokenizer: Its tokenizer.
        protect: The domains to spare.
        kind: How.
        samples: Completions a domain. `project` holds a gradient for each: 4 bytes × samples × domains × parameters.
            `surgery` holds one gradient more than the optimizer needs.
        lam: λ of `fisher`.
        rank: For `project`, leave only this many directions alone, those of the largest eigenvalues; None: all.
        seed: Seed of prompts and completions.

    Raises:
        ConfigError: No domain to protect, or a λ that is not positive.
        EmptyDomainError: A domain without prompts.
        NonFiniteError: Gradients that are all zero, or not finite.
        UnknownNameError: There is no such kind or domain.
    """
    return _as_callback(
        guard_for(model, tokenizer, protect, kind, samples=samples, lam=lam, rank=rank, seed=seed),
    )


def guard_for(
    model: nn.Module,
    tokenizer: Any,
    protect: Sequence[Batches],
    kind: Protection = "project",
    *,
    samples: int = 256,
    lam: float = 1.0,
    rank: int | None = None,
    seed: int = 0,
) -> Guard:
    """Build what `protecting` wraps as a callback, for a loop of one's own; see there."""
    if kind not in PROTECTIONS:
        raise UnknownNameError(
            f"protection {kind!r}", expected=f"one of {', '.join(PROTECTIONS)}", found=repr(kind), fix="Choose one."
        )
    if not protect:
        raise ConfigError("protect", expected="one domain or more", found="none", fix="Name a domain to spare.")
    if not lam > 0:
        raise ConfigError("lam", expected="a positive number", found=str(lam), fix="Give another lam=.")
    if kind == "surgery":
        from rlforget.training.surgery import Surgery

        return Surgery(model, protect, samples=samples, seed=seed, tokenizer=tokenizer)
    columns = whole_columns(model, trained=True)
    bend = (
        _projected(model, columns, protect, samples, rank, seed, tokenizer)
        if kind == "project"
        else _shortened(model, columns, protect, samples, lam, seed, tokenizer)
    )
    return _Bent(columns, bend)


def _projected(
    model: nn.Module,
    columns: Mapping[str, Column],
    protect: Sequence[Batches],
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
    protect: Sequence[Batches],
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
                "the Fisher of a protected domain",
                expected="a positive mean, to divide by",
                found=f"a mean of {mean}",
                fix="Look for NaN or Inf in the model's weights, and that the domain's completions are not empty.",
            )
        total = total.to(fisher.device) + fisher / mean
    scale = 1.0 / (1.0 + lam * total * (total.numel() / total.double().sum()).float())
    return lambda step: step * scale


class _Bent:
    """Bends the optimizer's step."""

    def __init__(self, columns: Mapping[str, Column], bend: Bend) -> None:
        self._columns, self._bend = columns, bend
        self._start = torch.empty(0)
        self._share = 0.0

    def before_step(self) -> None:
        self._start = values_of(self._columns)

    def after_step(self) -> None:
        step = values_of(self._columns) - self._start
        bent = self._bend(step)
        write_values(self._columns, self._start + bent)
        size = float(step.norm())
        self._share = float((step - bent).norm()) / size if size else 0.0

    def figures(self) -> dict[str, float]:
        return {"taken_off": self._share}


def _as_callback(guard: Guard) -> Any:
    from transformers import TrainerCallback

    class _Guarding(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            guard.before_step()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            guard.after_step()

    return _Guarding()
