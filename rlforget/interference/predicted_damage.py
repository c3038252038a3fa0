"""Predicted damage: how much an earlier domain's loss rises by a later change, from forward passes at the old weights.

With L(θ) the mean over an earlier domain's completions of −log π(completion | prompt), in nats, and δ the later change,

    L(θ_A + δ) − L(θ_A) ≈ g·δ + ½ δᵀ H δ.

One forward-mode pass a batch gives, of every completion x, the derivative of all its log-probabilities along δ, and so
d_x, that of log π(x): the first order is −mean d_x. The second order depends on what stands for H:

- `ggn`, the generalised Gauss–Newton matrix: ½ mean (Jδ)ᵀ (diag(p) − ppᵀ) (Jδ), summed over the scored positions; that
  is half the variance, under the model's own next-token distribution p, of the derivative of log p.
- `fisher`, the empirical Fisher: ½ mean d_x². Where the model samples the completions it has the same expectation, with
  more noise.
- `hessian`, the Hessian itself: −½ mean δᵀ ∇² log π(x) δ, by two forward modes in one another.

With several `points`, H is taken at as many places along δ, and the second order becomes Taylor's remainder, see
`remainder`: a change that goes beyond where the loss is quadratic is then followed, without the loss being measured.

Where the model at θ_A samples the completions, the expectation of the first order is 0 and that of the rise of the loss
is KL(π_A ‖ π_now), whose second-order term is the same GGN. That curvature predicts forgetting is a finding of
2606.02398; these estimators are textbook (Martens, 1412.1193, on the GGN and the Fisher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlforget.counting import counted
from rlforget.delta.naming import kind_of, layer_of
from rlforget.domains.batches import IGNORED
from rlforget.errors import ConfigError, UnknownNameError
from rlforget.interference.completions import (
    Batch,
    Batches,
    check_finite,
    check_same,
    collect,
    completed,
    completion_log_probs,
    pieces,
    scored_labels,
    scored_log_probs,
    summed,
)
from rlforget.interference.derivatives_on_shards import derivatives
from rlforget.interference.forward_mode import derivative_of, second_derivative_of
from rlforget.interference.point import Frozen, change_of, check_at_after, measured_parameters, moved, toward_before
from rlforget.interference.remainder import points_along, remainder_weights
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta

Curvature = Literal["ggn", "fisher", "hessian"]
By = Literal["tensor", "layer", "kind"]

_LABELS: dict[By, Callable[[str], str]] = {
    "tensor": str,
    "layer": lambda name: "outside" if (layer := layer_of(name)) is None else str(layer),
    "kind": kind_of,
}


@dataclass(frozen=True)
class DamagePart:
    """The predicted damage by one group of tensors.

    Attributes:
        first: g·δ restricted to the group, nats a completion. Over the groups these add up to the whole's.
        first_stderr: Its standard error.
        second: ½ δᵀ H δ with δ restricted to the group: what it would do alone. These do not add up.
        second_stderr: Its standard error.
        row_sum: ½ of the group's rows of δᵀ H δ: its share beside all the others. These add up to the whole's second
            order, and are negative where the group mends what others break.
        row_sum_stderr: Its standard error.
    """

    first: float
    first_stderr: float
    second: float
    second_stderr: float
    row_sum: float
    row_sum_stderr: float


@dataclass(frozen=True)
class Damage:
    """The predicted rise of an earlier domain's loss −log π, in nats a completion.

    Attributes:
        first: g·δ, the mean over completions.
        first_stderr: Its standard error over completions.
        second: ½ δᵀ H δ; with several points, Taylor's remainder.
        second_stderr: Its standard error.
        total: Their sum.
        total_stderr: Its standard error.
        count: Number of completions.
        curvature: What stood for H.
        points: Where it was taken: shares of δ, from 0 on.
        energies: ½ δᵀ H δ at each of them.
        by: How tensors were grouped.
        parts: The groups' damage, in the delta's order.
        skipped: Tensors that the delta changed and that were left out, frozen or quantised.
    """

    first: float
    first_stderr: float
    second: float
    second_stderr: float
    total: float
    total_stderr: float
    count: int
    curvature: Curvature
    points: tuple[float, ...]
    energies: tuple[float, ...]
    by: By | None
    parts: dict[str, DamagePart]
    skipped: tuple[str, ...] = ()

    def at(self, t: float) -> float:
        """Return the predicted rise at θ_A + tδ: t·first + t²·second, or with the remainder at t."""
        weights = remainder_weights(self.points, t)
        return t * self.first + 2.0 * sum(w * energy for w, energy in zip(weights, self.energies, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        return asdict(self)


def damage(
    model: nn.Module,
    delta: Delta,
    batches: Batches,
    *,
    curvature: Curvature = "ggn",
    points: int = 1,
    by: By | None = None,
    samples: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    frozen: Frozen = "error",
) -> Damage:
    """Predict how much a later change raises an earlier domain's loss, without training and without a gradient.

    One forward-mode pass a batch and a point, about three times the arithmetic of a forward pass; with `by`, one more a
    group, over the layers from the group's first on; `hessian` nests two. Memory beyond the model: its old values, δ in
    the model's dtype, and a pass's activations.

    Of a model that is spread over ranks, every rank calls this with the same arguments and a delta that is spread
    alike. The curvature is then `fisher`, from per-sample gradients at the changed coordinates that are here.

    Args:
        model: A transformers causal language model at the delta's after bits. It is moved to the before bits in place
            (floating-point parameters alone: buffers stay), and its bits are back afterwards, whatever happens.
        delta: The later change, from the earlier domain's stage to now.
        batches: The earlier domain, its name, or batches (see `Batches`); completions are sampled from the model at
            the before bits, unless `labels` give them.
        curvature: What stands for H, see the module.
        points: At how many places along δ H is taken; 1: at the before bits alone, enough for small changes.
        by: Also split the damage by tensor, by layer (embeddings, final norm and head are `outside`) or by kind.
        samples: How many completions to take; fewer where batches end before.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        frozen: "skip" leaves frozen and quantised tensors out of δ, at their present values.

    Raises:
        ConfigError: `points` is below 1, or above it with `fisher`, whose d_x are of samples of the before bits; or
            another curvature than `fisher` on shards, or other batches or settings on another rank.
        EmptyDomainError: There is nothing to sample.
        LayoutError: The delta is of another architecture, or the model cannot be differentiated forward.
        NonFiniteError: A log-probability or its derivative is NaN or infinite.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: The domain has fewer prompts than `samples`.
        UnknownNameError: There is no such curvature or grouping.
        WrongBaseError: The model is not at the delta's after bits.
    """
    _check_settings(curvature, points, by)
    spread = delta.sharding is not None
    if spread:
        _check_on_shards(curvature)
    parameters, skipped = measured_parameters(model, delta, frozen=frozen, shards=spread)
    check_at_after(open_weights(model, shards=spread), delta)
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    places = points_along(points)
    if spread:
        check_same(prompts, samples, seed, by, frozen)
        taken = [_taken_on_shards(model, delta, parameters, prompts, by, seed=seed, tokenizer=tokenizer)]
    else:
        taken = _taken(model, delta, parameters, prompts, by, curvature, places, seed=seed, tokenizer=tokenizer)
    whole = _along(taken, _WHOLE, places)
    means, errors = _spread(torch.cat([whole, whole.sum(0, keepdim=True)]))
    parts = {}
    for label in (label for label in taken[0] if label != _WHOLE):
        part_means, part_errors = _spread(_along(taken, label, places))
        first, alone, row_sum = zip(part_means, part_errors, strict=True)
        parts[label] = DamagePart(*first, *alone, *row_sum)
    first, second, total = zip(means, errors, strict=True)
    energies = tuple(float(one[_WHOLE][1].mean()) for one in taken)
    return Damage(*first, *second, *total, whole.shape[1], curvature, tuple(places), energies, by, parts, skipped)


_WHOLE = ""

_Terms = dict[str, Tensor]
"""Of all of δ and of each group: first order, second order(, row sum) of every completion, float64 [2 or 3, n]."""


def _taken(
    model: nn.Module,
    delta: Delta,
    parameters: Mapping[str, nn.Parameter],
    prompts: list[Batch],
    by: By | None,
    curvature: Curvature,
    places: Sequence[float],
    *,
    seed: int,
    tokenizer: Any,
) -> list[_Terms]:
    """Take the terms at each place."""
    change = change_of(model, delta, parameters)
    groups: dict[str, dict[str, Tensor]] = {}
    if by is not None:
        for name, (own, direction) in zip(parameters, change.items(), strict=True):
            groups.setdefault(_LABELS[by](name), {})[own] = direction
    taken: list[_Terms] = []
    for place in places:
        with moved(model, parameters, toward_before(delta, 1.0 - place)):
            if not taken:
                scored = list(completed(model, prompts, seed=seed, tokenizer=tokenizer))
            found: dict[str, list[Tensor]] = {}
            for batch in counted("completions", scored, size=lambda one: len(one["input_ids"])):
                for piece in pieces(model, batch):
                    for label, terms in _terms(model, piece, change, groups, curvature):
                        found.setdefault(label, []).append(terms.double().cpu())
            taken.append({label: torch.cat(terms, 1) for label, terms in found.items()})
    return taken


def _taken_on_shards(
    model: nn.Module,
    delta: Delta,
    parameters: Mapping[str, nn.Parameter],
    prompts: list[Batch],
    by: By | None,
    *,
    seed: int,
    tokenizer: Any,
) -> _Terms:
    """Take the terms at the before bits from per-sample gradients, with the empirical Fisher for H."""
    labels = {name: _WHOLE if by is None else _LABELS[by](name) for name in parameters}
    names = list(dict.fromkeys(labels.values()))
    groups = {name: names.index(label) for name, label in labels.items()}
    with moved(model, parameters, toward_before(delta, 1.0)):
        scored = completed(model, prompts, seed=seed, tokenizer=tokenizer)
        along = torch.cat(list(derivatives(model, delta, parameters, groups, scored)), 1)
    d = along.sum(0)  # d_x
    terms = {_WHOLE: torch.stack([-d, d * d / 2])}
    if by is not None:
        parts = zip(names, along, strict=True)
        terms |= {name: torch.stack([-own, own * own / 2, own * d / 2]) for name, own in parts}
    return terms


def _along(taken: Sequence[Mapping[str, Tensor]], label: str, places: Sequence[float]) -> Tensor:
    """Return a label's terms, [2 or 3, completions]: the first order at the first place, the rest over all of them."""
    rest = sum(2.0 * w * one[label][1:] for w, one in zip(remainder_weights(places, 1.0), taken, strict=True))
    return torch.cat([taken[0][label][:1], torch.as_tensor(rest)])


def _terms(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    groups: Mapping[str, Mapping[str, Tensor]],
    curvature: Curvature,
) -> Iterator[tuple[str, Tensor]]:
    """Yield, of all of δ and then of each group, [first, second(, row sum)] of every completion: [2 or 3, B]."""
    log_probs, tangent = derivative_of(scored_log_probs, model, change, batch)
    along = summed(tangent, batch)  # d_x
    check_finite(model, along, "the derivative of log π")
    scored = (scored_labels(batch) != IGNORED).unsqueeze(-1)
    weights = torch.where(scored, log_probs.exp(), 0.0)

    def second(part: Mapping[str, Tensor], one: Tensor, d: Tensor, rest: Mapping[str, Tensor], other: Tensor) -> Tensor:
        if curvature == "ggn":
            return (weights * torch.where(scored, one * other, 0.0)).sum((1, 2)) / 2
        if curvature == "fisher":
            return d * summed(other, batch) / 2
        return -second_derivative_of(completion_log_probs, model, part, rest, batch) / 2

    yield _WHOLE, torch.stack([-along, second(change, tangent, along, change, tangent)])
    for label, part in groups.items():
        _, own = derivative_of(scored_log_probs, model, part, batch)
        d = summed(own, batch)
        yield label, torch.stack([-d, second(part, own, d, part, own), second(part, own, d, change, tangent)])


def _spread(values: Tensor) -> tuple[list[float], list[float]]:
    """Return each row's mean and standard error; 0 for a single completion."""
    count = values.shape[1]
    errors = values.std(1) / count**0.5 if count > 1 else torch.zeros(len(values))
    return values.mean(1).tolist(), errors.tolist()


def _check_on_shards(curvature: str) -> None:
    if curvature != "fisher":
        raise ConfigError(
            "curvature",
            expected='"fisher" of a model that is spread over ranks: gathering weights has no forward mode',
            found=repr(curvature),
            fix='Give curvature="fisher", or load the whole model.',
        )


def _check_settings(curvature: str, points: int, by: str | None) -> None:
    for what, name, known in (("curvature", curvature, get_args(Curvature)), ("by", by, (None, *get_args(By)))):
        if name not in known:
            expected = f"one of {', '.join(map(str, known))}"
            raise UnknownNameError(f"{what} {name!r}", expected=expected, found=repr(name), fix="Check the spelling.")
    if points < 1 or (points > 1 and curvature == "fisher"):
        raise ConfigError(
            "points",
            expected='1 or more; with the curvature "fisher" 1',
            found=str(points),
            fix='Give another points=, or curvature="ggn".',
        )
