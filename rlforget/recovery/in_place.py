"""Rollback in live weights: old bits at coordinates, or the dense correction of a conflict subspace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlforget.errors import ConfigError, LayoutError, OutputError
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.point import check_at_after, names_in
from rlforget.interference.subspace import PROBES, ConflictSubspace
from rlforget.recovery.undo import Rollback, RollbackReport
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.live import LiveWeights
from rlforget.weights.undo import SavedBits, all_or_nothing
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.rollback import rollback_
from rlforget_kernels.subtract import subtract_

if TYPE_CHECKING:
    from rlforget.delta import Delta, TensorDelta


def rollback(
    weights: WeightsLike,
    delta: Delta,
    what: Coordinates | Mapping[str, Tensor] | ConflictSubspace,
    *,
    strength: float = 1.0,
    seed: int = 0,
) -> Rollback:
    """Undo part of a delta in live weights, in place.

    At coordinates: θ_i ← θ_i − s·δ_i, rounded to nearest even; s = 1 writes the old bits themselves. With a conflict
    subspace: θ ← θ − s·u in float32, over all of u; a 16-bit or 8-bit tensor takes it with stochastic rounding, whose
    random bits are a hash of the seed and the position, because most of u is below half a unit in the last place.

    Nothing is written before every bit of the delta is checked, and a fault on the way puts all bits back.

    Args:
        weights: A module, or a mapping from names to tensors, at the delta's after bits.
        delta: The later change.
        what: `conflict.top(...)` or {name: flat indices}, of coordinates that the delta changed; or the result of
            `rf.conflict_subspace`.
        strength: The share s to undo, in (0, 1].
        seed: Seed of the stochastic rounding.

    Returns:
        The handle that undoes it: call it, or use it as a context manager. See `.report` for what was done.

    Raises:
        ConfigError: A strength out of range, or below 1 for tensors of integers.
        CoordinateError: A coordinate that the delta did not change.
        LayoutError: Weights, delta and subspace are not of one architecture.
        OutputError: The weights are a checkpoint on disk.
        WrongBaseError: The weights are not at the delta's after bits.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(
            "strength", expected="a number in (0, 1]", found=repr(strength), fix="Use 1 to undo all of it."
        )
    opened = open_weights(weights)
    if not isinstance(opened, LiveWeights):
        raise OutputError(
            opened.description,
            expected="weights in memory",
            found="a checkpoint on disk",
            fix="Load the model first; or revert(path, delta.restrict(coordinates), in_place=True).",
        )
    if isinstance(what, ConflictSubspace):
        _check_subspace(what, delta)
        check_at_after(opened, delta)
        return _subtract_correction(weights, opened, delta, what, strength, seed)
    chosen = _chosen(what if isinstance(what, Coordinates) else Coordinates(what), delta, names_in(opened, delta))
    _check_strength(chosen, strength)
    check_at_after(opened, delta)
    return _put_back(weights, opened, delta, chosen, strength)


class _Chosen(NamedTuple):
    """The coordinates chosen in one tensor, as int64 positions among those that the delta changed."""

    tensor: TensorDelta
    positions: Tensor


def _chosen(coordinates: Coordinates, delta: Delta, names: Mapping[str, str]) -> dict[str, _Chosen]:
    """Group the coordinates by the name of their tensor in the weights, where two of the delta's may be one, tied."""
    chosen: dict[str, _Chosen] = {}
    for name, positions in coordinates.positions(delta).items():
        tensor = delta[name]
        target = names[tensor.name]
        if target in chosen:
            first, others = chosen[target]
            if not first.same_patch(tensor):
                raise LayoutError(
                    f"tensor {target!r}",
                    expected=f"{first.name!r} and {name!r} apart, as the delta has them",
                    found="one tied tensor, which had two different changes",
                    fix="Untie the two first.",
                )
            tensor, positions = first, _union(others, positions)
        chosen[target] = _Chosen(tensor, positions)
    return chosen


def _put_back(
    source: WeightsLike, weights: Weights, delta: Delta, chosen: Mapping[str, _Chosen], strength: float
) -> Rollback:
    places = {target: _places(weights.tensor(target), one) for target, one in chosen.items()}
    whole = _delta_square(delta)

    def write(saved: dict[str, SavedBits]) -> Rollback:
        entries, written, taken = 0, 0, 0.0
        for target, (weight, at, before, old) in places.items():
            saved[target] = SavedBits(old, at)
            rollback_(weight, before, indices=at, strength=strength)
            new = as_bits(weight).index_select(0, at)
            entries += at.numel()
            written += int((new != old).sum())
            taken += _square(_difference(old.view(weight.dtype), new.view(weight.dtype)))
        return Rollback(source, saved, RollbackReport(entries, written, strength, _norm_share(taken, whole)))

    return all_or_nothing(weights, write)


class _Places(NamedTuple):
    """What is needed to write one tensor: made for all of them before the first is written."""

    weight: Tensor
    at: Tensor  # flat indices
    before: Tensor  # the delta's before there
    old: Tensor  # the bits held there now


def _places(weight: Tensor, one: _Chosen) -> _Places:
    at = one.tensor.indices[one.positions].to(weight.device)
    before = one.tensor.before[one.positions].to(weight.device)
    return _Places(weight, at, before, as_bits(weight).index_select(0, at))


def _subtract_correction(
    source: WeightsLike, weights: Weights, delta: Delta, subspace: ConflictSubspace, strength: float, seed: int
) -> Rollback:
    names = names_in(weights, delta)
    whole = _delta_square(delta)

    def write(saved: dict[str, SavedBits]) -> Rollback:
        written, entries, taken, error, wanted = 0, 0, 0.0, 0.0, 0.0
        harm, repair = torch.zeros(PROBES, dtype=torch.float64), torch.zeros(PROBES, dtype=torch.float64)
        for name, correction in subspace.correction.items():
            target = names[name]
            weight = weights.tensor(target)
            step = strength * correction.to(weight.device)
            before = weight.clone()
            saved[target] = SavedBits.whole(before)
            subtract_(weight, step, seed=seed, offset=entries)
            saved[target], changed = SavedBits.changed(before, weight)
            moved = _difference(before, weight)
            missed = (step - moved).flatten()
            written += changed
            entries += weight.numel()
            taken, error, wanted = taken + _square(moved), error + _square(missed), wanted + _square(step)
            probes = subspace.probes[name]
            harm += (probes @ missed.to(probes)).double()
            repair += (probes @ step.flatten().to(probes)).double()
        report = RollbackReport(
            coordinates=entries,
            written=written,
            strength=strength,
            norm_share=_norm_share(taken, whole),
            rounding=_norm_share(error, wanted),
            rounding_damage=_norm_share(_square(harm), _square(repair)),
        )
        return Rollback(source, saved, report)

    return all_or_nothing(weights, write)


def _union(first: Tensor, second: Tensor) -> Tensor:
    merged: Tensor = torch.cat([first, second]).unique()  # type: ignore[no-untyped-call]
    return merged


def _check_strength(chosen: Mapping[str, _Chosen], strength: float) -> None:
    for target, one in chosen.items():
        if strength != 1.0 and not one.tensor.dtype.is_floating_point:
            raise ConfigError(
                f"strength {strength} for tensor {target!r}",
                expected="a tensor of floating-point numbers",
                found=str(one.tensor.dtype),
                fix="Integers can only be put back whole: use strength 1.",
            )


def _check_subspace(subspace: ConflictSubspace, delta: Delta) -> None:
    for name, correction in subspace.correction.items():
        shape = tuple(delta[name].shape) if name in delta.layout else None
        if shape != tuple(correction.shape):
            raise LayoutError(
                f"the correction of {name!r}",
                expected="no such tensor" if shape is None else f"shape {shape}",
                found=f"shape {tuple(correction.shape)}",
                fix="Solve the conflict subspace for this very delta.",
            )


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """Return before − after, in float32; in float64 for float64 and integers."""
    narrow = before.is_floating_point() and before.dtype != torch.float64
    wide = torch.float32 if narrow else torch.float64
    return before.to(wide) - after.to(wide)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def _delta_square(delta: Delta) -> float:
    return sum(_square(tensor.values) for tensor in delta.values() if tensor.changed)


def _norm_share(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0
