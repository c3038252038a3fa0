"""Rollback by a correction u of whole tensors: of a conflict subspace, or of the soft or the Kronecker rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlforget.errors import LayoutError
from rlforget.interference.blocks import subtract_block_
from rlforget.interference.kronecker import KroneckerRule
from rlforget.interference.soft import SoftRule
from rlforget.interference.subspace import ConflictSubspace
from rlforget.recovery.norms import delta_square, difference, norm_share, square
from rlforget.recovery.old_bits import check_partial, check_tied
from rlforget.recovery.undo import Rollback, RollbackReport
from rlforget.weights import Weights
from rlforget.weights.box import Box
from rlforget.weights.undo import Live, SavedBits, all_or_nothing
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.project_rollback import project_rollback_
from rlforget_kernels.rollback import rollback_

if TYPE_CHECKING:
    from rlforget.delta import Delta


class Correction(NamedTuple):
    """How a rule changes weights.

    Attributes:
        targets: For each tensor to change, by its name in the weights, its name in the delta.
        write: Takes the latter, the weight, and how many entries the tensors before it have; writes the weight in
            place, and returns the step it was to take, float32, of the weight's shape: what it should now be less.
        probes: For each tensor, by its name in the delta, [probes, numel] directions along which rounding is measured.
    """

    targets: dict[str, str]
    write: Callable[[str, Tensor, int], Tensor]
    probes: Mapping[str, Tensor] = {}


def of_subspace(
    subspace: ConflictSubspace, delta: Delta, names: Mapping[str, str], strength: float, seed: int
) -> Correction:
    """Return the correction of a conflict subspace: u itself, rounded stochastically.

    Raises:
        LayoutError: The subspace is of another delta.
    """
    for name, correction in subspace.correction.items():
        shape = _box(delta, name).sizes if name in delta else None
        if shape != tuple(correction.shape):
            raise LayoutError(
                f"the correction of {name!r}",
                expected="no such tensor" if shape is None else f"shape {shape}",
                found=f"shape {tuple(correction.shape)}",
                fix="Solve the conflict subspace for this very delta.",
            )

    def write(name: str, weight: Tensor, offset: int) -> Tensor:
        step = strength * subspace.correction[name].to(weight.device)
        subtract_block_(weight, step, _box(delta, name), seed=seed, offset=offset)
        return step

    return Correction({names[name]: name for name in subspace.correction}, write, subspace.probes)


def _box(delta: Delta, name: str) -> Box:
    """Return what of a tensor is in memory here."""
    return Box.whole(tuple(delta[name].shape)) if delta.sharding is None else delta.sharding.boxes[name]


def of_soft_rule(rule: SoftRule, delta: Delta, names: Mapping[str, str], strength: float, seed: int) -> Correction:
    """Return the correction of the soft rule: at each coordinate its share of δ, rounded stochastically.

    Raises:
        ConfigError: A share of a change of integers.
        LayoutError: The rule is of another delta, or two tensors with different changes are one in the weights.
    """
    targets: dict[str, str] = {}
    for name, share in rule.shares.items():
        changed = delta[name].changed if name in delta else None
        if changed != share.numel():
            raise LayoutError(
                f"the shares of {name!r}",
                expected="no such tensor" if changed is None else f"{changed} coordinates, as the delta changed",
                found=str(share.numel()),
                fix="Make the rule from Fishers of this very delta.",
            )
        if not bool(share.any()):
            continue
        check_partial(delta[name], 0.5)
        first = targets.setdefault(names[name], name)
        check_tied(names[name], delta[first], delta[name])

    def write(name: str, weight: Tensor, offset: int) -> Tensor:
        tensor = delta[name]
        at, share = tensor.indices.to(weight.device), rule.shares[name].to(weight.device)
        step = torch.zeros(weight.numel(), device=weight.device)
        step[at.long()] = strength * share * tensor.values.to(weight.device)
        before = tensor.before.to(weight.device)
        rollback_(weight, before, at, share, strength=strength, seed=seed, offset=offset, by_share=True)
        return step.view(weight.shape)

    return Correction(targets, write)


def of_kronecker_rule(
    rule: KroneckerRule, delta: Delta, names: Mapping[str, str], strength: float, seed: int
) -> Correction:
    """Return the correction of the Kronecker rule, rounded stochastically.

    Raises:
        LayoutError: The rule is of another delta.
    """
    for name, layer in rule.layers.items():
        shape = tuple(delta[name].shape) if name in delta else None
        fits = (layer.read[0].shape[0], layer.read[1].shape[0])
        if shape != fits:
            raise LayoutError(
                f"the bases of {name!r}",
                expected="no such tensor" if shape is None else f"bases of a tensor of shape {shape}",
                found=f"bases of shape {fits}",
                fix="Find the rule for this very delta.",
            )

    def write(name: str, weight: Tensor, offset: int) -> Tensor:
        layer, tensor = rule.layers[name].to(weight.device), delta[name]
        before = weight.detach().clone(memory_format=torch.contiguous_format)
        as_bits(before)[tensor.indices.to(weight.device).long()] = tensor.before_bits.to(weight.device)
        step = strength * layer.correction(difference(weight.detach(), before).float())
        project_rollback_(weight, before, *layer.read, strength * layer.shrinkage, seed, offset, *layer.write)
        return step

    return Correction({names[name]: name for name in rule.layers}, write)


def take_off(source: Live, weights: Weights, delta: Delta, correction: Correction, strength: float) -> Rollback:
    """Write a correction, and measure what rounding to the stored dtype did to it."""
    whole = delta_square(delta)

    def write(saved: dict[str, SavedBits]) -> _Written:
        offset, written = 0, _Written()
        for target, name in correction.targets.items():
            weight = weights.tensor(target)
            before = weight.clone()
            saved[target] = SavedBits.whole(before)
            step = correction.write(name, weight, offset)
            saved[target], changed = SavedBits.changed(before, weight)
            moved = difference(before, weight)
            missed = (step - moved).flatten()
            offset += weights.meta(target).numel
            if not weights.counted_here(target):
                continue
            sums = (square(moved), square(missed), square(step))
            harm = repair = _NOTHING
            if name in correction.probes:
                probes = correction.probes[name]
                harm = (probes @ missed.to(probes)).double()
                repair = (probes @ step.flatten().to(probes)).double()
            written += _Written(int(torch.count_nonzero(step)), changed, *sums, harm, repair)
        return written

    def end(told: Sequence[_Written], saved: dict[str, SavedBits]) -> Rollback:
        done = sum(told, _Written())
        report = RollbackReport(
            coordinates=done.entries,
            written=done.changed,
            strength=strength,
            norm_share=norm_share(done.taken, whole),
            rounding=norm_share(done.missed, done.wanted),
            rounding_damage=norm_share(square(done.harm), square(done.repair)) if correction.probes else None,
        )
        return Rollback(source, saved, report)

    return all_or_nothing(weights, write, end)


_NOTHING = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class _Written:
    """What was written, as sums over tensors and ranks: squares of norms, and what the probes tell, [probes]."""

    entries: int = 0
    changed: int = 0
    taken: float = 0.0
    missed: float = 0.0
    wanted: float = 0.0
    harm: Tensor = _NOTHING
    repair: Tensor = _NOTHING

    def __add__(self, other: _Written) -> _Written:
        return _Written(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
