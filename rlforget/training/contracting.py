"""How a refresh contracts the harmful component of a later change, beside what the theory says.

2606.02398's refresh theorem (known from a digest; S in its own notation): with θ₀ = θ_A + δ and plain gradient descent
θ_{t+1} = θ_t − α g_A(θ_t), the component in the conflict subspace S shrinks as ‖P_S(θ_t − θ_A)‖ ≤ (1 − αμ_A)^t ‖P_S δ‖,
μ_A the lower curvature of L_A on S. Here S is the span of the leading directions of A's per-sample gradients at θ_A, on
completions sampled from θ_A itself, and L_A is the divergence KL(π_A ‖ π) on those: 0 at θ_A, as its gradient is, and
its Hessian there is the Fisher, of which the gradients are a sample. So μ_A is the least eigenvalue that S keeps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.domains.batches import IGNORED
from rlforget.errors import ConfigError, NonFiniteError
from rlforget.interference.completions import Batches, collect, completed, scored_labels, scored_log_probs
from rlforget.interference.point import changed_parameters, check_at_after, moved, toward_before
from rlforget.interference.sample_gradients import measuring
from rlforget.training.span import Span, gradient_rows, values_of, whole_columns, write_values
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta


@dataclass(frozen=True)
class Contraction:
    """How far the weights were from θ_A inside S, step by step.

    Attributes:
        distances: ‖P_S(θ_t − θ_A)‖ before the first step and after each: steps + 1 numbers.
        mu: μ_A, the least eigenvalue that S keeps, of the sample's Fisher at θ_A.
        largest: The largest.
        rank: Directions in S.
        rates: The learning rate α of each step. For plain gradient descent as given. For any other optimizer the rate
            that explains its step best, −⟨P_S Δθ, P_S g⟩ / ‖P_S g‖², with g the gradient it was given, of whatever loss
            it minimises: the theorem does not cover it.
    """

    distances: tuple[float, ...]
    mu: float
    largest: float
    rank: int
    rates: tuple[float, ...]

    @property
    def bound(self) -> tuple[float, ...]:
        """Π (1 − α_t μ_A) ‖P_S δ‖ before the first step and after each."""
        bounds = [self.distances[0]]
        for rate in self.rates:
            bounds.append(bounds[-1] * (1.0 - rate * self.mu))
        return tuple(bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the bound, for programs."""
        return {**asdict(self), "bound": list(self.bound)}


class ConflictSpan:
    """θ_A and the conflict subspace S there.

    Args:
        model: The model at the delta's after bits; they are back afterwards.
        delta: The later change, from θ_A to now.
        domain: The earlier domain A, or batches of it.
        samples: Completions, sampled from θ_A.
        rank: Directions to keep at most, those of the largest eigenvalues; the fewer, the larger μ_A.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Attributes:
        span: S.
        origin: θ_A, float32 [N].
        columns: Where each parameter stands.
        batches: The completions, with `labels`.
        log_probs: For each of them, log π_A of every token at each scored position, as `scored_log_probs` returns.
    """

    def __init__(
        self,
        model: nn.Module,
        delta: Delta,
        domain: Batches,
        *,
        samples: int = 256,
        rank: int | None = 16,
        seed: int = 0,
        tokenizer: Any = None,
    ) -> None:
        check_at_after(open_weights(model), delta)
        self.columns = whole_columns(model)
        prompts = collect(model, domain, samples=samples, seed=seed, tokenizer=tokenizer)
        with moved(model, changed_parameters(model, delta), toward_before(delta, 1.0)):
            self.origin = values_of(self.columns)
            self.batches = list(completed(model, prompts, seed=seed, tokenizer=tokenizer))
            rows = gradient_rows(model, self.columns, self.batches, samples=samples, seed=seed, tokenizer=tokenizer)
            with torch.no_grad():
                self.log_probs = [scored_log_probs(model, batch) for batch in self.batches]
        self.span = Span(rows, rank)

    def distance(self) -> float:
        """Return ‖P_S(θ − θ_A)‖ at the model's present weights."""
        return float(self.span.coordinates(values_of(self.columns) - self.origin).norm())

    def gradient(self, model: nn.Module) -> Tensor:
        """Return the gradient of L_A at the model's present weights, float32 [N]."""
        parameters = [column.parameter for column in self.columns.values()]
        count = sum(int(batch["input_ids"].shape[0]) for batch in self.batches)
        total = torch.zeros_like(self.origin)
        with measuring(model):
            for parameter in parameters:
                parameter.requires_grad_(True)
            for batch, reference in zip(self.batches, self.log_probs, strict=True):
                tokens = (reference.exp() * (reference - scored_log_probs(model, batch))).sum(-1)  # [B, S]
                loss = torch.where(scored_labels(batch) != IGNORED, tokens, 0.0).sum() / count
                total += _flat(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
        return total

    def contraction(self, distances: list[float], rates: list[float]) -> Contraction:
        """Put what was measured beside what is expected."""
        values = self.span.eigenvalues
        return Contraction(
            distances=tuple(distances),
            mu=float(values[-1]),
            largest=float(values[0]),
            rank=self.span.rank,
            rates=tuple(rates),
        )


def contraction(
    model: nn.Module,
    delta: Delta,
    domain: Batches,
    *,
    steps: int = 40,
    learning_rate: float | None = None,
    samples: int = 256,
    rank: int | None = 16,
    within: bool = False,
    seed: int = 0,
    tokenizer: Any = None,
) -> Contraction:
    """Refresh by plain gradient descent, as the theorem has it, and put the model's bits back.

    Each step takes the gradient of L_A over all of the completions sampled at θ_A.

    Args:
        model: A transformers causal language model at the delta's after bits, in float32 or wider: steps this small are
            lost in 16 bits.
        delta: The later change, from θ_A to now.
        domain: The earlier domain.
        steps: Steps of descent.
        learning_rate: α; None: half of 1 over the largest eigenvalue, up to which the theorem's factor stays in [0, 1).
        samples: Completions.
        rank: Directions in S.
        within: Begin at θ_A + P_S δ, with the harmful component alone. Otherwise the rest of δ is there too, and where
            curvature couples it to S it keeps the component in S from falling as the bound says.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Raises:
        ConfigError: An argument out of range, or weights narrower than float32.
        NonFiniteError: The descent diverged.
        WrongBaseError: The model is not at the delta's after bits.
    """
    narrow = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4}
    if narrow:
        raise ConfigError(
            "the model's weights",
            expected="float32, which small steps are not lost in",
            found=", ".join(sorted(narrow)),
            fix="Load it in float32, and make the delta of that.",
        )
    if steps < 1 or (learning_rate is not None and not learning_rate > 0):
        raise ConfigError(
            "steps and learning_rate",
            expected="at least 1, and a positive number",
            found=f"{steps}, {learning_rate}",
            fix="Give one step or more, and a rate such as 1e-3.",
        )
    found = ConflictSpan(model, delta, domain, samples=samples, rank=rank, seed=seed, tokenizer=tokenizer)
    rate = 0.5 / float(found.span.eigenvalues[0]) if learning_rate is None else learning_rate
    distances = [found.distance()]
    change = values_of(found.columns) - found.origin
    with moved(model, {name: column.parameter for name, column in found.columns.items()}, lambda _, now: now):
        if within:
            write_values(found.columns, found.origin + found.span.part(change))
        for step in range(steps):
            gradient = found.gradient(model)
            write_values(found.columns, values_of(found.columns) - rate * gradient)
            distances.append(found.distance())
            if not math.isfinite(distances[-1]):
                raise NonFiniteError(
                    f"step {step + 1} of the descent",
                    expected="finite weights",
                    found=str(distances[-1]),
                    fix="Lower learning_rate.",
                )
    return found.contraction(distances, [rate] * steps)


def _flat(parameters: list[nn.Parameter], gradients: Any) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).detach().float().flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


def following(span: ConflictSpan) -> Any:
    """Build the `TrainerCallback` that measures a real refresh, for `refresh(..., callbacks=[...])`.

    Its method `contraction()` returns the `Contraction` afterwards. Its rates are fitted (see there), so the bound that
    they give is a comparison and no theorem: AdamW scales every coordinate on its own and remembers its past, and its
    loss is not L_A (with GRPO it is the negative reward, with SFT that of a mean token of gold answers).

    Args:
        span: S, made from the model that is going to be refreshed.
    """
    from transformers import TrainerCallback

    class _Following(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.distances, self.rates = [span.distance()], list[float]()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            parameters = [column.parameter for column in span.columns.values()]
            gradient = _flat(parameters, [parameter.grad for parameter in parameters])
            self._gradient, self._start = span.span.coordinates(gradient), values_of(span.columns)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = span.span.coordinates(values_of(span.columns) - self._start)
            square = float(self._gradient.square().sum())
            self.rates.append(-float(step @ self._gradient) / square if square > 0 else 0.0)
            self.distances.append(span.distance())

        def contraction(self) -> Contraction:
            """Return what was measured so far."""
            return span.contraction(self.distances, self.rates)

    return _Following()
