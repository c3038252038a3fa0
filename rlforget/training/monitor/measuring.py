"""One pass over the trained parameters: what changed since the reference, where, and at what predicted cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from rlforget.delta.overlaps import SetOverlap
from rlforget.delta.stats import Change, combine, named_change
from rlforget.training.monitor.dependence import Dependence
from rlforget.training.monitor.earlier import ChangedEarlier
from rlforget.training.monitor.reference import Reference
from rlforget_kernels.common.arithmetic import widened
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.delta_stats import DeltaStats, foreach_delta_stats

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Pass:
    """What a pass found on this rank, or on all.

    Attributes:
        change: The change of the trained parameters.
        energies: By domain, Σ F δ².
        common: By earlier stage, how many coordinates both changed.
        earlier: By earlier stage, how many it changed.
    """

    change: Change
    energies: dict[str, float]
    common: dict[str, int]
    earlier: dict[str, int]

    def overlaps(self) -> dict[str, SetOverlap]:
        """Return the overlap with each earlier stage: it is the first set, the change is the second."""
        change = self.change
        return {
            name: SetOverlap(change.numel, count, change.changed, self.common[name])
            for name, count in self.earlier.items()
        }

    def conflicts(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return Σ F δ² / Σ δ² over the mean of F, by domain; nothing where nothing changed."""
        square = self.change.sum_of_squares
        return {name: energy / square / means[name] for name, energy in self.energies.items()} if square > 0 else {}


def added(passes: Sequence[Pass]) -> Pass:
    """Return what the ranks' passes found together."""

    def total(counts: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
        return {name: sum((one[name] for one in counts[1:]), counts[0][name]) for name in counts[0]}

    return Pass(
        change=combine(one.change for one in passes),
        energies=total([one.energies for one in passes]),
        common=total([one.common for one in passes]),
        earlier=total([one.earlier for one in passes]),
    )


def measure(reference: Reference, dependences: Mapping[str, Dependence], earlier: Mapping[str, ChangedEarlier]) -> Pass:
    """Pass over the parameters once.

    Args:
        reference: The weights to compare with.
        dependences: {domain: its Fisher}.
        earlier: {stage: what it changed}.
    """
    rows: list[DeltaStats] = []
    sizes: list[tuple[torch.dtype, int]] = []
    energies: dict[str, list[Tensor]] = {name: [] for name in dependences}
    common: dict[str, list[Tensor]] = {name: [] for name in earlier}
    for stretch, then, now in reference.stretches():
        rows.append(DeltaStats(*foreach_delta_stats([then], [now])))
        sizes.append((then.dtype, then.numel()))
        if dependences:
            squares = (widened(now) - widened(then)).float().square_()
            for name, dependence in dependences.items():
                energies[name].append(dependence.energy(stretch, squares))
        if earlier:
            changed = as_bits(then) != as_bits(now)
            for name, mask in earlier.items():
                common[name].append(mask.common(stretch, changed))
    return Pass(
        change=combine(
            named_change(dtype, numel, int(row.count("changed")), row, 0)
            for row, (dtype, numel) in zip(rows, sizes, strict=True)
        ),
        energies={name: _total(values) for name, values in energies.items()},
        common={name: int(_total(values)) for name, values in common.items()},
        earlier={name: mask.count for name, mask in earlier.items()},
    )


def _total(values: list[Tensor]) -> float:
    """Add up scalars, in order; on a GPU this is where the pass is waited for."""
    return float(sum(torch.stack([value.cpu() for value in values]).double().tolist())) if values else 0.0
