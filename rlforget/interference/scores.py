"""Conflict scores: one non-negative number a changed coordinate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.errors import ConfigError, LayoutError, NonFiniteError, UnknownNameError
from rlforget.interference.combining import Fishers, fisher_of
from rlforget.interference.empirical_fisher import Fisher
from rlforget.interference.selection import Conflict
from rlforget.weights.batching import batches
from rlforget.weights.ranks import gathered, summed
from rlforget.weights.sharding import Sharding, together
from rlforget_kernels.common.score_bits import INFINITY_BIN, LEADING_BINS
from rlforget_kernels.conflict_score import foreach_conflict_score

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

_AT_ONCE = 1 << 22  # coordinates that are scored together

_HOW = {
    "earlier": "earlier=rf.fisher(model, batches_of_the_earlier_domain, at=delta)",
    "later": "later=rf.fisher(model, batches_of_the_later_domain, at=delta)",
    "own": "own=rf.diff(base, earlier_stage), the earlier domain's own update",
    "subspace": "subspace=rf.conflict_subspace(model, delta, restore=..., protect=...)",
}


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
        earlier: The Fisher of the domain to restore, taken at `delta`; or one a domain, each then divided by its mean
            (`combine_fishers` gives them weights besides).
        later: Likewise for the domains to spare.
        score: A name of the table; by default `subspace` where one is given, else `two_fisher`.
        own: δ_A, the earlier domain's own update, for `opposed`.
        subspace: For `subspace`.
        epsilon: For `two_fisher`: at 10 it is close to `fisher`, at 0.1 it spares the later domains most.
        seed: For `random`.

    Raises:
        ConfigError: The score needs an argument that is missing.
        LayoutError: A Fisher, own delta or subspace of another delta.
        NonFiniteError: A score or a Fisher is NaN or infinite, and the message names the tensor; or a Fisher is zero
            everywhere.
        UnknownNameError: There is no such score.
    """
    score = score or ("two_fisher" if subspace is None else "subspace")
    _check_needs(score, {"earlier": earlier, "later": later, "own": own, "subspace": subspace})
    _check_point(score, earlier)
    changed = {name: tensor for name, tensor in delta.items() if delta.counts[name]}
    firsts = _firsts(changed, delta.sharding) if score == "random" else {}
    ends = accumulate(delta.counts[name] for name in changed)
    offsets = {name: end - delta.counts[name] + firsts.get(name, 0) for name, end in zip(changed, ends, strict=True)}

    def scored() -> tuple[dict[str, Tensor], Tensor]:
        fisher_a, fisher_b = (
            fisher_of(side, delta) if side is not None and need in NEEDS[score] else None
            for need, side in (("earlier", earlier), ("later", later))
        )
        scores: dict[str, Tensor] = {}
        histogram = torch.zeros(LEADING_BINS, dtype=torch.int64)
        damping = 0.0 if fisher_b is None else epsilon * fisher_b.mean
        if fisher_b is not None and changed and not damping > 0.0:
            raise ConfigError(
                "epsilon", expected="a positive number", found=repr(epsilon), fix="Use 10, or 0.1 to spare B most."
            )

        def direction(tensor: TensorDelta) -> Tensor | None:
            if score == "taylor" and fisher_a is not None:
                return fisher_a.gradient[tensor.name]
            if score == "opposed" and own is not None:
                return _values_at(own, tensor)
            if score == "subspace" and subspace is not None:
                return _correction_at(subspace, tensor, delta)
            return None

        def counted(tensor: TensorDelta) -> bool:
            return delta.sharding is None or tensor.name in delta.sharding.counted

        for batch in batches(changed.values(), lambda tensor: tensor.changed, _AT_ONCE, counted):
            names = [tensor.name for tensor in batch]
            found, counts = foreach_conflict_score(
                [tensor.values for tensor in batch],
                score,
                earlier=[] if fisher_a is None else [fisher_a.values[name] for name in names],
                later=[] if fisher_b is None else [fisher_b.values[name] for name in names],
                directions=[direction(tensor) for tensor in batch],
                damping=damping,
                seed=seed,
                offsets=[offsets[name] for name in names],
            )
            scores.update(zip(names, found, strict=True))
            if int(counts[INFINITY_BIN:].sum()):
                _check_finite(score, dict(zip(names, found, strict=True)))
            if counted(batch[0]):
                histogram += counts.cpu()
        return scores, histogram

    scores, histogram = together(scored, delta.sharding)
    return Conflict(delta, score, scores, histogram if delta.sharding is None else summed(histogram))


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


def _check_point(score: str, earlier: Fishers | None) -> None:
    """Hold that `taylor` expands about the earlier end: half-way the gradient alone is already of second order."""
    several = [] if earlier is None else [earlier] if isinstance(earlier, Fisher) else earlier
    if score == "taylor" and any(one.where == "midpoint" for one in several):
        raise ConfigError(
            "score 'taylor'",
            expected="Fishers taken at the earlier end of the change, about which it expands",
            found="one taken at the midpoint",
            fix='Measure it with rf.fisher(..., where="earlier").',
        )


def _values_at(own: Delta, tensor: TensorDelta) -> Tensor:
    """δ_A at the coordinates of `tensor`, 0 where the earlier domain changed nothing: float32 [changed]."""
    other = own.get(tensor.name)
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


def _correction_at(subspace: ConflictSubspace, tensor: TensorDelta, delta: Delta) -> Tensor:
    """Read u at the coordinates of `tensor`, 0 for a tensor that takes no gradient: float32 [changed]."""
    correction = subspace.correction.get(tensor.name)
    if correction is None:
        return torch.zeros(tensor.changed)
    shape = tuple(tensor.shape) if delta.sharding is None else delta.sharding.boxes[tensor.name].sizes
    if tuple(correction.shape) != shape:
        raise LayoutError(
            f"the correction of {tensor.name!r}",
            expected=f"shape {shape}",
            found=f"shape {tuple(correction.shape)}",
            fix="Solve the conflict subspace for this very delta.",
        )
    return correction.flatten()[delta.places(tensor.name)]


def _firsts(changed: Mapping[str, TensorDelta], sharding: Sharding | None) -> dict[str, int]:
    """Return, of each tensor, how many changed coordinates stand before those of this rank.

    Raises:
        ConfigError: Those of several ranks take turns.
    """
    if sharding is None:
        return {}
    split = [name for name in changed if sum(1 for _ in sharding.boxes[name].runs()) > 1]
    if any(gathered(bool(split))):
        raise ConfigError(
            "score 'random'",
            expected="tensors that are split along their first dimension alone",
            found=f"{split[0]!r}, split along another" if split else "others, on another rank",
            fix="Shard with fully_shard, or take the control 'magnitude'.",
        )
    starts = {name: next((there.start for _, there in sharding.boxes[name].runs()), 0) for name in changed}
    told = gathered({name: (starts[name], t.changed) for name, t in changed.items() if name in sharding.counted})
    return {name: sum(one[name][1] for one in told if name in one and one[name][0] < starts[name]) for name in changed}


def _check_finite(score: str, scores: Mapping[str, Tensor]) -> None:
    for name, found in scores.items():
        wrong = int((~found.isfinite()).sum())
        if wrong:
            raise NonFiniteError(
                f"the score {score!r} of {name!r}",
                expected="finite numbers",
                found=f"NaN or Inf at {wrong} coordinates",
                fix="Look for NaN or Inf in the weights on either side of the delta and in the Fishers.",
            )
