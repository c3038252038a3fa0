"""The conflict subspace: the few directions along which the later change damages the earlier domains.

The correction u minimises ½‖G_A(δ − u)‖² + (λ/2)‖G_B u‖² + (μ/2)‖u‖². The rows of G_A are gradients of
log π(completion | prompt) of the domains to restore, taken half-way between before and after, where G_A δ is the
second-order accurate difference of the outputs at the two ends; those of G_B, of the domains to protect, are taken at
the present weights. With W = [G_A; √λ G_B] it is solved in the sample space: (W Wᵀ + μI) y = [G_A δ; 0], u = Wᵀ y.
The rule is this project's own; that the damage concentrates in such a subspace is a finding of 2606.02398.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError
from rlforget.interference import sample_space
from rlforget.interference.completions import Batches, collect
from rlforget.interference.gradient_stack import GradientStack
from rlforget.interference.point import changed_parameters, check_at_after
from rlforget.interference.sample_gradients import Column, columns_for, width
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta

PROBES = 16


@dataclass(frozen=True)
class Pass:
    """What one pass of the solution did, in the linear model that it solved.

    Attributes:
        restore_rows: Rows of G_A.
        protect_rows: Rows of G_B.
        mu: The ridge, absolute.
        damage: ‖G_A δ‖ with δ what was left before this pass: root mean square over the completions of the change of
            log π, in nats, summed over the domains to restore.
        damage_left: ‖G_A (δ − u)‖ after it.
        side_effect: ‖G_B u‖, likewise for the domains to protect.
        norm_share: ‖u‖ / ‖δ‖.
    """

    restore_rows: int
    protect_rows: int
    mu: float
    damage: float
    damage_left: float
    side_effect: float
    norm_share: float


@dataclass(frozen=True)
class ConflictSubspace:
    """The correction u: subtract it from the present weights to undo the damage.

    Attributes:
        correction: For each tensor that the delta changed and that takes gradients, u in float32, of the tensor's
            shape: dense, also where the delta changed nothing.
        passes: What each pass did; none where there is nothing to correct.
        probes: For each tensor of `correction`, float32 [16, numel]: signed random sums of the rows of the last G_A, so
            that ‖P v‖ estimates ‖G_A v‖ for any v.
    """

    correction: dict[str, Tensor]
    passes: tuple[Pass, ...]
    probes: dict[str, Tensor]

    @property
    def norm(self) -> float:
        """‖u‖."""
        return math.sqrt(sum(float(value.double().square().sum()) for value in self.correction.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnostics, for programs."""
        return {"norm": self.norm, "passes": [asdict(one) for one in self.passes]}


def conflict_subspace(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches] = (),
    *,
    samples: int = 256,
    mu: float = 1e-4,
    lam: float = 1.0,
    passes: int = 1,
    seed: int = 0,
    tokenizer: Any = None,
    random: bool = False,
) -> ConflictSubspace:
    """Find the correction that undoes the damage to some domains and spares others, without training.

    This is the plain form: it holds every sample's gradient, 4 bytes × samples × domains × changed tensors' entries.

    Args:
        model: A transformers causal language model at the delta's after bits. It is moved in place, and its bits are
            back afterwards, whatever happens.
        delta: The later change, from the stage to restore to now.
        restore: Domains (or batches, see `Batches`) that were damaged; stacked in G_A.
        protect: Domains whose present skill is to stay; stacked in G_B.
        samples: Completions a domain, sampled from the model at the point of the gradient. Rows are divided by the root
            of their domain's count.
        mu: Ridge, in units of the mean squared norm of G_A's rows. Positive.
        lam: Weight of the protected domains.
        passes: How often to solve; each pass linearises anew about the weights that the ones before it lead to.
        seed: Seed of prompts, completions and probes.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        random: The control: G_A's rows are as many random directions, nothing is protected, and u is the share of δ in
            their span.

    Raises:
        ConfigError: An argument out of range.
        EmptyDomainError: A domain without samples.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        WrongBaseError: The model is not at the delta's after bits.
    """
    _check_arguments(restore, samples=samples, mu=mu, lam=lam, passes=passes)
    parameters = changed_parameters(model, delta)
    check_at_after(open_weights(model), delta)
    columns = columns_for(parameters)
    if not columns:
        return ConflictSubspace({}, (), {})
    change = _flat(delta, columns).to(next(model.parameters()).device)
    correction = torch.zeros_like(change)
    reports: list[Pass] = []
    if random:
        rows = _random_rows(len(restore) * samples, change, seed)
        restoring, lam = rows.shape[0], 0.0
        correction, report = _solve(rows, restoring, change, mu=mu, lam=lam)
        reports.append(report)
    else:
        restored, protected = (
            [collect(model, one, samples=samples, seed=seed, tokenizer=tokenizer) for one in several]
            for several in (restore, protect if lam else ())
        )
        stack = GradientStack(model, columns, restored, protected, lam=lam, seed=seed, tokenizer=tokenizer)
        rows, restoring = stack.rows, stack.restoring
        for _ in range(passes):
            stack.fill(change, correction)
            step, report = _solve(rows, restoring, change - correction, mu=mu, lam=lam)
            correction += step
            reports.append(report)
    return ConflictSubspace(
        {name: value.view(columns[name].parameter.shape) for name, value in _by_name(correction, columns).items()},
        tuple(reports),
        _by_name(_probes(rows[:restoring], seed), columns),
    )


def _check_arguments(restore: Sequence[Batches], *, samples: int, mu: float, lam: float, passes: int) -> None:
    rules = (
        (
            "restore",
            isinstance(restore, Sequence) and not isinstance(restore, str) and len(restore) > 0,
            "a list of one domain or more",
            type(restore).__name__,
        ),
        ("samples", samples >= 1, "at least 1", str(samples)),
        ("mu", mu > 0, "a positive number", str(mu)),
        ("lam", lam >= 0, "a number that is not negative", str(lam)),
        ("passes", passes >= 1, "at least 1", str(passes)),
    )
    for name, holds, expected, found in rules:
        if not holds:
            raise ConfigError(name, expected=expected, found=found, fix=f"Give another {name}=.")


def _flat(delta: Delta, columns: Mapping[str, Column]) -> Tensor:
    """Return δ over the columns, float32 [width], 0 where nothing changed."""
    flat = torch.zeros(width(columns))
    for name, column in columns.items():
        flat[column.span][delta[name].indices.to(torch.int64)] = delta[name].values
    return flat


def _by_name(values: Tensor, columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """Split the last dimension by tensor, on the CPU."""
    return {name: values[..., column.span].clone().cpu() for name, column in columns.items()}


def _solve(rows: Tensor, restoring: int, change: Tensor, *, mu: float, lam: float) -> tuple[Tensor, Pass]:
    """Return u, float32 [N], for W = `rows` [n, N], whose first `restoring` rows are G_A, and δ = `change`."""
    product = sample_space.gram(rows)
    ridge = max(mu * float(product.diagonal()[:restoring].mean()), torch.finfo(torch.float64).tiny)
    target = product.new_zeros(rows.shape[0])
    target[:restoring] = sample_space.forward(rows[:restoring], change)
    identity = torch.eye(rows.shape[0], dtype=product.dtype, device=product.device)
    y = torch.linalg.solve(product + ridge * identity, target)
    correction = sample_space.backward(rows, y)
    reached = product @ y  # [G_A u; √λ G_B u]
    return correction, Pass(
        restore_rows=restoring,
        protect_rows=rows.shape[0] - restoring,
        mu=ridge,
        damage=float(target.norm()),
        damage_left=float((target - reached)[:restoring].norm()),
        side_effect=float(reached[restoring:].norm()) / lam**0.5 if lam else 0.0,
        norm_share=float(correction.double().norm() / change.double().norm()),
    )


def _random_rows(count: int, like: Tensor, seed: int) -> Tensor:
    """Return `count` random directions, nearly of unit length, float32 [count, N]: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(count, like.numel(), device=like.device)
    for row in rows:
        row.copy_(torch.randn(like.numel(), generator=generator))
    rows /= like.numel() ** 0.5
    return rows


def _probes(rows: Tensor, seed: int) -> Tensor:
    """Return signed sums of G_A's rows, float32 [PROBES, N], with E‖P v‖² = ‖G_A v‖²."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (PROBES, rows.shape[0]), generator=generator).mul_(2).sub_(1)
    return torch.mm(signs.to(rows.device, rows.dtype) / PROBES**0.5, rows)
