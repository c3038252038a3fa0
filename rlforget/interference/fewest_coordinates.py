"""The fewest coordinates whose old bits undo the damage: a share p of each, in [0, 1], that ends at 0 or 1.

Minimise ½‖G_A(δ − pδ)‖² + (λ/2)‖G_B pδ‖² over 0 ≤ p ≤ 1 with Σp at most the number asked for. Its Lagrangian is the
search for the least Σp that leaves so little damage. Both the box and the bound on the sum push p to its ends: nearly
every entry is 0 or 1 and rounding changes little. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.interference.completions import Batches
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.forms import Form, check_settings, flat, refuse_unless, sources_of, space_of
from rlforget.interference.linearisation import Linearisation, SampleSpace
from rlforget.interference.point import Frozen
from rlforget.interference.rows import Kind
from rlforget.interference.scores import conflict
from rlforget.interference.selection import Conflict
from rlforget_kernels.select_top import leading_histogram

if TYPE_CHECKING:
    from rlforget.delta import Delta

_POWER_STEPS = 16
_HALVINGS = 40
_SETTLED = 1e-4  # of the budget, moved in a step


def fewest(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches] = (),
    *,
    fraction: float | None = None,
    count: int | None = None,
    samples: int = 256,
    rows: Kind = "sequence",
    row_budget: int | None = None,
    restore_weights: Sequence[float] | None = None,
    protect_weights: Sequence[float] | None = None,
    lam: float = 1.0,
    steps: int = 200,
    form: Form = "auto",
    block: int = 16,
    frozen: Frozen = "error",
    seed: int = 0,
    tokenizer: Any = None,
) -> Coordinates:
    """Choose so many coordinates that putting their old bits back undoes most of the damage, all of them together.

    Where a score ranks each coordinate alone, this solves for all at once: what two coordinates both undo is counted
    once. Accelerated projected gradient steps; each takes a product with the rows and one with their transpose. Of the
    streamed form these are a forward-mode pass and a weighted backward pass over all rows.

    Args:
        model: A transformers causal language model at the delta's after bits, which are back afterwards.
        delta: The later change, from the stage to restore to now.
        restore: Domains (or batches, see `Batches`) that were damaged.
        protect: Domains whose present skill is to stay.
        fraction: How many, as a share in (0, 1] of all the model's coordinates.
        count: How many. Give one of the two. Fewer come back where fewer undo it all.
        samples: Completions a domain.
        rows: See `conflict_subspace`.
        row_budget: Rows a domain at most.
        restore_weights: What each domain to restore counts; by default all count 1.
        protect_weights: Likewise for those to protect.
        lam: Weight of the protected domains.
        steps: Steps at most; they end before where p has settled.
        form: "plain", "streamed" or "auto", as in `conflict_subspace`.
        block: Rows whose activations the streamed form holds at once.
        frozen: "skip" leaves frozen parameters and quantised tensors where they are, with no part in δ or u.
        seed: Seed of prompts, completions and drawn rows.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Raises:
        ConfigError: An argument out of range.
        CoordinateError: A fraction or count out of range, or not exactly one of the two.
        EmptyDomainError: A domain without samples.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: A domain has fewer prompts than `samples`.
        WrongBaseError: The model is not at the delta's after bits.
    """
    check_settings(restore, samples=samples, rows=rows, row_budget=row_budget, lam=lam, form=form, block=block)
    refuse_unless(
        ("lam", not isinstance(lam, str), "a number not below 0", repr(lam)), ("steps", steps >= 1, "at least 1", steps)
    )
    budget = conflict(delta, score="magnitude").top(fraction, count=count).count
    sources = sources_of(
        model,
        delta,
        restore,
        protect if lam else (),
        samples=samples,
        rows=rows,
        row_budget=row_budget,
        restore_weights=restore_weights,
        protect_weights=protect_weights,
        frozen=frozen,
        seed=seed,
        tokenizer=tokenizer,
    )
    if not budget or not sources.columns:
        return Coordinates({})
    change = flat(delta, sources.columns)
    space = space_of(Linearisation.draw(sources, [change] * len(restore), torch.zeros_like(change)), form, block=block)
    shares = _shares(space, change.to(space.device), budget, lam=lam, steps=steps)
    scores = {
        name: shares[sources.columns[name].span].cpu()[tensor.indices.to(torch.int64)]
        if name in sources.columns
        else torch.zeros(tensor.changed)
        for name, tensor in delta.items()
        if tensor.changed
    }
    return Conflict(delta, "fewest", scores, leading_histogram(list(scores.values()))).top(count=budget)


def _shares(space: SampleSpace, change: Tensor, budget: int, *, lam: float, steps: int) -> Tensor:
    """Return p, float32 [N], by accelerated projected gradients (Beck and Teboulle, 2009) that start anew when they
    turn (O'Donoghue and Candès, 1204.3982).
    """
    target = space.along(change)

    def pull(shares: Tensor, wanted: Tensor) -> Tensor:
        """Gradient of ½‖G_A pδ − wanted‖² + (λ/2)‖G_B pδ‖² by p."""
        part = change * shares
        outputs = torch.cat([space.along(part) - wanted, lam * space.along(part, protect=True)])
        return change * space.combined(outputs)

    steepest = -pull(torch.zeros_like(change), target)
    length = _curvature(lambda shares: pull(shares, torch.zeros_like(target)), steepest)
    if length == 0.0:
        return torch.zeros_like(change)
    now = torch.zeros_like(change)
    ahead, pace = now, 1.0
    for _ in range(steps):
        new = _projected(ahead - pull(ahead, target) / length, budget)
        step = new - now
        if float(torch.dot(ahead - new, step)) > 0.0:
            pace = 1.0
        faster = (1.0 + (1.0 + 4.0 * pace * pace) ** 0.5) / 2.0
        ahead, now, pace = new + (pace - 1.0) / faster * step, new, faster
        if float(step.abs().sum()) < _SETTLED * budget:
            break
    return now


def _curvature(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """Return the largest eigenvalue of a positive operator, by the power method from `start`, and a tenth more."""
    direction, value = start, 0.0
    for _ in range(_POWER_STEPS):
        norm = float(direction.norm())
        if norm == 0.0:
            break
        direction = direction / norm
        following = product(direction)
        value = float(following.norm())
        direction = following
    return 1.1 * value


def _projected(values: Tensor, budget: int) -> Tensor:
    """Return the nearest point with 0 ≤ p ≤ 1 and Σp ≤ budget: all lowered by one amount, then clipped."""
    clipped = values.clamp(0.0, 1.0)
    if float(clipped.sum(dtype=torch.float64)) <= budget:
        return clipped
    low, high = 0.0, float(values.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        total = float((values - middle).clamp_(0.0, 1.0).sum(dtype=torch.float64))
        low, high = (middle, high) if total > budget else (low, middle)
    return (values - high).clamp_(0.0, 1.0)
