"""Rollback in live weights: old bits at coordinates, or the correction of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

from torch import Tensor

from rlforget.errors import ConfigError, LayoutError, OutputError
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.kronecker import KroneckerRule
from rlforget.interference.point import check_at_after, names_in
from rlforget.interference.soft import SoftRule
from rlforget.interference.subspace import ConflictSubspace
from rlforget.recovery.corrections import Correction, of_kronecker_rule, of_soft_rule, of_subspace, take_off
from rlforget.recovery.old_bits import Chosen, choose, put_back
from rlforget.recovery.undo import Rollback
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.live import LiveWeights
from rlforget.weights.sharding import together

if TYPE_CHECKING:
    from rlforget.delta import Delta

What = Coordinates | Mapping[str, Tensor] | ConflictSubspace | SoftRule | KroneckerRule


def rollback(
    weights: WeightsLike,
    delta: Delta,
    what: What,
    *,
    strength: float = 1.0,
    seed: int = 0,
) -> Rollback:
    """Undo part of a delta in live weights, in place.

    At coordinates: θ_i ← θ_i − s·δ_i, rounded to nearest even; s = 1 writes the old bits themselves. By a rule:
    θ ← θ − s·u in float32, with u the correction of a conflict subspace, or the share of δ that the soft rule gives
    back at each coordinate, or the Kronecker rule in each direction of a layer. A 16-bit or 8-bit tensor takes it with
    stochastic rounding, whose random bits are a hash of the seed and the position, because most of u is below half a
    unit in the last place.

    Nothing is written before every bit of the delta is checked, and a fault on the way puts all bits back. Of weights
    that are spread over ranks every rank calls this, with its part of the delta and of the coordinates or the rule; a
    fault on one rank puts the bits of all back.

    Args:
        weights: A module, or a mapping from names to tensors, at the delta's after bits.
        delta: The later change.
        what: `conflict.top(...)` or {name: flat indices}, of coordinates that the delta changed; or the result of
            `rf.conflict_subspace`, `rf.soft_rule` or `rf.kronecker_rule`.
        strength: The share s to undo, in (0, 1].
        seed: Seed of the stochastic rounding.

    Returns:
        The handle that undoes it: call it, or use it as a context manager. See `.report` for what was done.

    Raises:
        ConfigError: A strength out of range, or below 1 for tensors of integers.
        CoordinateError: A coordinate that the delta did not change.
        LayoutError: Weights, delta and rule are not of one architecture.
        OutputError: The weights are a checkpoint on disk.
        WrongBaseError: The weights are not at the delta's after bits.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(
            "strength", expected="a number in (0, 1]", found=repr(strength), fix="Use 1 to undo all of it."
        )
    opened = open_weights(weights, shards=True)
    if isinstance(weights, str | PathLike) or not isinstance(opened, LiveWeights):
        raise OutputError(
            opened.description,
            expected="weights in memory",
            found="a checkpoint on disk",
            fix="Load the model first; or revert(path, delta.restrict(coordinates), in_place=True).",
        )
    ready = together(lambda: _prepared(what, opened, delta, strength, seed), opened.sharding)
    check_at_after(opened, delta)
    if isinstance(ready, Correction):
        return take_off(weights, opened, delta, ready, strength)
    return put_back(weights, opened, delta, ready, strength)


def _prepared(what: What, opened: Weights, delta: Delta, strength: float, seed: int) -> Correction | dict[str, Chosen]:
    """Return what is to be written, checked but for the bits that are there now."""
    names = names_in(opened, delta)
    if isinstance(what, ConflictSubspace):
        return of_subspace(what, delta, names, strength, seed)
    if opened.sharding is not None and isinstance(what, SoftRule | KroneckerRule):
        raise LayoutError(
            opened.description,
            expected="whole weights, for the soft and the Kronecker rule",
            found="weights that are spread over ranks",
            fix="Roll back coordinates or a conflict subspace; or gather the model.",
        )
    if isinstance(what, SoftRule):
        return of_soft_rule(what, delta, names, strength, seed)
    if isinstance(what, KroneckerRule):
        return of_kronecker_rule(what, delta, names, strength, seed)
    return choose(what if isinstance(what, Coordinates) else Coordinates(what), delta, names, strength)
