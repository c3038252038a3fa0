"""Conflict scores: one non-negative number a changed coordinate, and the coordinates that score highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.errors import ConfigError, CoordinateError, LayoutError, NonFiniteError, UnknownNameError
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.empirical_fisher import Fisher
from rlforget_kernels.common.score_bits import INFINITY_BIN, LEADING_BINS
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.select_top import select_top

if TYPE_CHECKING:
    from rlforget.delta import Delta, TensorDelta
    from rlforget.interference.subspace import ConflictSubspace

NEEDS: dict[str, tuple[str, ...]] = {
    "fisher": ("earlier",),
    "taylor": ("earlier",),
    "opposed": ("own",),
    "two_fisher": ("earlier", "later"),
    "subspace": ("subspace",),
    "magnitude": (),
    "random": (),
}
"""The scores, and which arguments of `conflict` each needs."""

_HOW = {
    "earlier": "earlier=rf.fisher(model, batches_of_the_earlier_domain, at=delta)",
    "later": "later=rf.fisher(model, batches_of_the_later_domain, at=delta)",
    "own": "own=rf.diff(base, earlier_stage), the earlier domain's own update",
    "subspace": "subspace=rf.conflict_subspace(model, delta, restore=..., protect=...)",
}
Fishers = Fisher | Sequence[Fisher]


@dataclass(frozen=True)
class Conflict:
    """Scores of a delta's coordinates.

    Attributes:
        delta: The delta that was scored.
        score: The name of the score.
        scores: For each changed tensor, float32 [changed], non-negative, in the order of the delta's indices.
        histogram: int64 [4096], counts of the scores' bits >> 19 over all tensors.
    """

    delta: Delta
    score: str
    scores: dict[str, Tensor]
    histogram: Tensor

    @property
    def changed(self) -> int:
        """How many coordinates were scored."""
        return sum(score.numel() for score in self.scores.values())

    def top(self, fraction: float | None = None, *, count: int | None = None) -> Coordinates:
        """Return the coordinates that score highest, by one threshold over all tensors.

        Ties go to the earlier tensor, then to the lower index. A coordinate that scores 0 is never picked, so fewer
        than asked for come back where fewer score above it.

        Args:
            fraction: How many, as a share in (0, 1] of all the model's coordinates, changed or not. More than the
                delta changed gives all that it changed.
            count: How many, at most as many as the delta changed.

        Raises:
            CoordinateError: A fraction or count out of range, or not exactly one of the two.
        """
        positive = sum(int(torch.count_nonzero(score)) for score in self.scores.values())
        wanted = min(self._count(fraction, count), positive)
        picked = select_top(list(self.scores.values()), wanted, self.histogram)
        return Coordinates(
            {
                name: self.delta[name].indices[positions].to(torch.int64)
                for name, positions in zip(self.scores, picked, strict=True)
                if positions.numel()
            }
        )

    def _count(self, fraction: float | None, count: int | None) -> int:
        if (fraction is None) == (count is None):
            raise CoordinateError(
                "conflict.top",
                expected="either fraction= or count=",
                found="both" if fraction is not None else "neither",
                fix="Give one of them.",
            )
        if fraction is not None:
            if not 0.0 < fraction <= 1.0:
                raise CoordinateError(
                    "fraction", expected="a number in (0, 1]", found=repr(fraction), fix="Write 2% as 0.02."
                )
            return min(max(1, round(fraction * self.delta.numel)), self.changed)
        assert count is not None
        if not 0 < count <= self.changed:
            raise CoordinateError(
                "count",
                expected=f"between 1 and {self.changed}, what the delta changed",
                found=repr(count),
                fix="Ask for fewer coordinates.",
            )
        return count


def conflict(
    delta: Delta,
    *,
    earlier: Fishers | None = None,
    later: Fishers | None = None,
    score: str | None = None,
    own: Delta | None = None,
    subspace: ConflictSubspace | None = None,
    epsilon: float = 10.0,
    seed: int = 0,
) -> Conflict:
    """Score how much undoing each changed coordinate should help the earlier domains and spare the later ones.

    | score | formula |
    | --- | --- |
    | `fisher` | F_A δ², the diagonal of the second-order damage (2606.02398, reconstructed) |
    | `taylor` | max(0, g_A δ + ½ F_A δ²), with g_A the mean gradient of the earlier domains' loss |
    | `opposed` | abs(δ_A δ) where the signs differ, else 0 |
    | `two_fisher` | F_A δ² / (F_B + ε · mean F_B) |
    | `subspace` | max(0, u δ), u the correction of the conflict subspace |
    | `magnitude`, `random` | abs(δ), uniform with a seed: the controls |

    Args:
        delta: The later change, from the earlier domain's stage to now.
        earlier: The Fisher of the domain to restore, taken at `delta`; or one a domain, each then divided by its mean.
        later: Likewise for the domains to spare.
        score: A name of the table; by default `subspace` where one is given, else `two_fisher`.
        own: δ_A, the earlier domain's own update, for `opposed`.
        subspace: For `subspace`.
        epsilon: For `two_fisher`: at 10 it is close to `fisher`, at 0.1 it spares the later domains most.
        seed: For `random`.

    Raises:
        ConfigError: The score needs an argument that is missing.
        LayoutError: A Fisher, own delta or subspace of another delta.
        NonFiniteError: A score is NaN or infinite; the message names the tensor.
        UnknownNameError: There is no such score.
    """
    score = score or ("two_fisher" if subspace is None else "subspace")
    _check_needs(score, {"earlier": earlier, "later": later, "own": own, "subspace": subspace})
    changed = {name: tensor for name, tensor in delta.items() if tensor.changed}
    fisher_a = _combined(earlier, changed) if "earlier" in NEEDS[score] else None
    fisher_b = _combined(later, changed) if "later" in NEEDS[score] else None
    scores: dict[str, Tensor] = {}
    histogram = torch.zeros(LEADING_BINS, dtype=torch.int64)
    offset = 0
    damping = 0.0 if fisher_b is None else epsilon * fisher_b.mean
    if fisher_b is not None and not damping > 0.0:
        raise NonFiniteError(
            "the Fisher of the later domains",
            expected="a positive mean, to divide by",
            found=f"a mean of {fisher_b.mean} and epsilon={epsilon}",
            fix="Take it on samples that have gradients at these coordinates, with epsilon above 0.",
        )
    for name, tensor in changed.items():
        direction = None
        if score == "taylor" and fisher_a is not None:
            direction = fisher_a.gradient[name]
        elif score == "opposed" and own is not None:
            direction = _values_at(own, tensor)
        elif score == "subspace" and subspace is not None:
            direction = _correction_at(subspace, tensor)
        scores[name], counts = conflict_score(
            tensor.values,
            score,
            earlier=None if fisher_a is None else fisher_a.values[name],
            later=None if fisher_b is None else fisher_b.values[name],
            direction=direction,
            damping=damping,
            seed=seed,
            offset=offset,
        )
        _check_finite(name, score, counts)
        histogram += counts.to(histogram.device)
        offset += tensor.changed
    return Conflict(delta, score, scores, histogram)


def _check_needs(score: str, given: Mapping[str, object]) -> None:
    if score not in NEEDS:
        raise UnknownNameError(
            f"score {score!r}", expected=f"one of {', '.join(NEEDS)}", found=repr(score), fix="Check the spelling."
        )
    for need in NEEDS[score]:
        if given[need] is None or given[need] == []:
            raise ConfigError(
                f"score {score!r}", expected=f"the argument {need}", found="none", fix=f"Pass {_HOW[need]}."
            )


def _combined(fishers: Fishers | None, changed: Mapping[str, TensorDelta]) -> Fisher:
    """One Fisher for several domains: the sum of each divided by its mean. One alone stays as it is."""
    several = [fishers] if isinstance(fishers, Fisher) else list(fishers or [])
    for one in several:
        _check_fisher(one, changed)
    if len(several) == 1:
        return several[0]
    weights = [1.0 / mean if (mean := one.mean) > 0 else 0.0 for one in several]

    def total(name: str, part: str) -> Tensor:
        terms = [getattr(one, part)[name] * weight for one, weight in zip(several, weights, strict=True)]
        return torch.stack(terms).sum(0)

    return Fisher(
        {name: total(name, "values") for name in changed},
        {name: total(name, "gradient") for name in changed},
        sum(one.samples for one in several),
    )


def _check_fisher(fisher: Fisher, changed: Mapping[str, TensorDelta]) -> None:
    for name, tensor in changed.items():
        found = fisher.values[name].numel() if name in fisher.values else None
        if found != tensor.changed:
            raise LayoutError(
                f"the Fisher of {name!r}",
                expected=f"{tensor.changed} coordinates, as the delta changed",
                found="no such tensor" if found is None else str(found),
                fix="Measure it with rf.fisher(..., at=delta) for this very delta.",
            )


def _values_at(own: Delta, tensor: TensorDelta) -> Tensor:
    """δ_A at the coordinates of `tensor`, 0 where the earlier domain changed nothing: float32 [changed]."""
    other = own[tensor.name] if tensor.name in own.layout else None
    if other is None or tuple(other.shape) != tuple(tensor.shape):
        raise LayoutError(
            f"the own update of {tensor.name!r}",
            expected=f"a tensor of shape {tuple(tensor.shape)}",
            found="no such tensor" if other is None else f"shape {tuple(other.shape)}",
            fix="Pass a delta between stages of this very model.",
        )
    values = torch.zeros(tensor.changed)
    if other.changed:
        indices, wanted = other.indices.to(torch.int64), tensor.indices.to(torch.int64)
        found = torch.searchsorted(indices, wanted).clamp_max(other.changed - 1)
        shared = indices[found] == wanted
        values[shared] = other.values[found[shared]]
    return values


def _correction_at(subspace: ConflictSubspace, tensor: TensorDelta) -> Tensor:
    """Read u at the coordinates of `tensor`, 0 for a tensor that takes no gradient: float32 [changed]."""
    correction = subspace.correction.get(tensor.name)
    if correction is None:
        return torch.zeros(tensor.changed)
    if tuple(correction.shape) != tuple(tensor.shape):
        raise LayoutError(
            f"the correction of {tensor.name!r}",
            expected=f"shape {tuple(tensor.shape)}",
            found=f"shape {tuple(correction.shape)}",
            fix="Solve the conflict subspace for this very delta.",
        )
    return correction.flatten()[tensor.indices.to(torch.int64)]


def _check_finite(name: str, score: str, histogram: Tensor) -> None:
    wrong = int(histogram[INFINITY_BIN:].sum())
    if wrong:
        raise NonFiniteError(
            f"the score {score!r} of {name!r}",
            expected="finite numbers",
            found=f"NaN or Inf at {wrong} coordinates",
            fix="Look for NaN or Inf in the weights on either side of the delta and in the Fishers.",
        )
