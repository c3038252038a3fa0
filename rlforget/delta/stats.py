"""How much changed: sparsity by bits and under two published tolerances, norms, and steps.

`rlforget_kernels.delta_stats` measures; here its numbers are named, grouped and added up.

Sources of the tolerances: |after - before| <= 1e-5 counts as unchanged in arXiv 2505.11711, and
|after - before| <= 1e-3 * max(|before|, |after|) in arXiv 2511.08567. For non-zero bfloat16 values the second one means
equal bits, so a sparsity says little without the storage dtype beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.naming import KINDS, kind_of, layer_of
from rlforget.weights import TensorMeta
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding
from rlforget_kernels.delta_stats import COUNTS, STEP_BINS, SUMS, foreach_delta_stats
from rlforget_kernels.delta_stats import DeltaStats as Measured

_NO_STEPS = (0,) * STEP_BINS


@dataclass(frozen=True)
class Change:
    """How much a tensor, or a group of tensors, changed.

    Attributes:
        dtypes: The storage dtypes, sorted.
        numel: All coordinates.
        changed: Those whose stored bits differ.
        changed_absolute: Those beyond the absolute tolerance, 1e-5.
        changed_relative: Those beyond the relative tolerance, 1e-3 of max(|before|, |after|).
        steps: Of the finite ones, by how many representable values they moved (units in the last place): bin 0 none,
            as from -0 to 0, then bin b from 2**(b-1) up to 2**b - 1. 65 counts.
        non_finite: Changed coordinates that are NaN or infinite before or after. They count as beyond both tolerances
            and are left out of the norms.
        l1: Sum of |after - before|. Differences are those of float32 (float64 for float64 and integers), sums float64.
        sum_of_squares: Sum of (after - before)**2.
        largest: Largest |after - before|.
    """

    dtypes: tuple[str, ...] = ()
    numel: int = 0
    changed: int = 0
    changed_absolute: int = 0
    changed_relative: int = 0
    steps: tuple[int, ...] = _NO_STEPS
    non_finite: int = 0
    l1: float = 0.0
    sum_of_squares: float = 0.0
    largest: float = 0.0

    @property
    def l2(self) -> float:
        """The Euclidean norm of after - before."""
        return math.sqrt(self.sum_of_squares)

    @property
    def sparsity(self) -> float:
        """The share of coordinates whose bits are the same; 1 where there are none."""
        return _unchanged(self.changed, self.numel)

    @property
    def sparsity_absolute(self) -> float:
        """The share of coordinates within the absolute tolerance."""
        return _unchanged(self.changed_absolute, self.numel)

    @property
    def sparsity_relative(self) -> float:
        """The share of coordinates within the relative tolerance."""
        return _unchanged(self.changed_relative, self.numel)

    @property
    def unit_steps(self) -> int:
        """How many moved to a neighbouring representable value, by one unit in the last place."""
        return self.steps[1]

    @property
    def unit_step_share(self) -> float:
        """The share of the changed coordinates that moved by one unit in the last place; 0 where none changed."""
        return self.unit_steps / self.changed if self.changed else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return counts, shares and norms as plain numbers; of the steps, the bins up to the last that is not empty."""
        return {
            "dtypes": list(self.dtypes),
            "numel": self.numel,
            "changed": self.changed,
            "changed_absolute": self.changed_absolute,
            "changed_relative": self.changed_relative,
            "sparsity": self.sparsity,
            "sparsity_absolute": self.sparsity_absolute,
            "sparsity_relative": self.sparsity_relative,
            "steps": list(self.steps[: max((b for b, count in enumerate(self.steps) if count), default=-1) + 1]),
            "unit_steps": self.unit_steps,
            "unit_step_share": self.unit_step_share,
            "non_finite": self.non_finite,
            "l1": self.l1,
            "l2": self.l2,
            "max": self.largest,
        }


@dataclass(frozen=True)
class DeltaStats:
    """How much changed in each tensor.

    Attributes:
        tensors: {tensor name: its change}, in the delta's order, of those that kept their shape and dtype.
        whole: {tensor name: what became of it}, of the others: `added`, `removed`, `resized` or `retyped`.
        files: {file name: what became of it}, of the files that are no weights: `added`, `removed` or `changed`.
        renamed: {tensor name before: after}.
    """

    tensors: dict[str, Change]
    whole: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing changed at all."""
        return not (self.whole or self.files or self.renamed or self.total.changed)

    @property
    def total(self) -> Change:
        """The change of all tensors together."""
        return combine(self.tensors.values())

    @property
    def kinds(self) -> dict[str, Change]:
        """The change by kind of tensor; kinds without tensors are left out."""
        groups: dict[str, list[Change]] = {kind: [] for kind in KINDS}
        for name, change in self.tensors.items():
            groups[kind_of(name)].append(change)
        return {kind: combine(changes) for kind, changes in groups.items() if changes}

    @property
    def layers(self) -> dict[int | None, Change]:
        """The change by layer, in order; None, last, gathers the tensors outside of all layers."""
        groups: dict[int | None, list[Change]] = {}
        for name, change in self.tensors.items():
            groups.setdefault(layer_of(name), []).append(change)
        order = sorted(groups, key=lambda layer: (layer is None, layer or 0))
        return {layer: combine(groups[layer]) for layer in order}

    def table(self, *, layers: bool = True, tensors: bool = False) -> str:
        """Return a table of at most 100 columns: the kinds, the layers, the tensors if asked for, and the total."""
        from rlforget.delta.table import render

        return render(self, layers=layers, tensors=tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "total": self.total.to_dict(),
            "kinds": {kind: change.to_dict() for kind, change in self.kinds.items()},
            "layers": {
                "none" if layer is None else str(layer): change.to_dict() for layer, change in self.layers.items()
            },
            "tensors": {
                name: {"kind": kind_of(name), "layer": layer_of(name), **change.to_dict()}
                for name, change in self.tensors.items()
            },
            "whole": dict(self.whole),
            "files": dict(self.files),
            "renamed": dict(self.renamed),
        }


def measure(delta: Delta) -> DeltaStats:
    """Measure every tensor of a delta, in O(changed) time: what did not change is within every tolerance."""
    tensors = list(delta.values())
    measured = Measured(*foreach_delta_stats([t.before for t in tensors], [t.after for t in tensors]))
    changes = {t.name: named_change(t.dtype, t.numel, t.changed, measured, row) for row, t in enumerate(tensors)}
    return DeltaStats(
        changes if delta.sharding is None else _of_all_ranks(changes, delta.sharding),
        {t.name: fate(t.meta_before, t.meta_after) for t in delta.whole.values()},
        {file.name: fate_of_file(file.before, file.after) for file in delta.files.values()},
        delta.renamed,
    )


def _of_all_ranks(here: dict[str, Change], sharding: Sharding) -> dict[str, Change]:
    told = gathered({name: change for name, change in here.items() if name in sharding.counted})
    return {
        name: replace(combine(one[name] for one in told if name in one), numel=change.numel)
        for name, change in here.items()
    }


def fate(before: TensorMeta | None, after: TensorMeta | None) -> str:
    """Return what became of a tensor that changed as a whole."""
    if before is None or after is None:
        return "added" if before is None else "removed"
    return "retyped" if before.shape == after.shape else "resized"


def fate_of_file(before: bytes | None, after: bytes | None) -> str:
    """Return what became of a file."""
    return "added" if before is None else "removed" if after is None else "changed"


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without that of torch."""
    return str(dtype).removeprefix("torch.")


def named_change(dtype: torch.dtype, numel: int, changed: int, measured: Measured, row: int) -> Change:
    """Name the numbers of one row of `foreach_delta_stats`, of a tensor of `numel` coordinates."""
    counts = dict(zip(COUNTS, measured.counts[row].tolist(), strict=True))
    sums = dict(zip(SUMS, measured.sums[row].tolist(), strict=True))
    return Change(
        dtypes=(dtype_name(dtype),),
        numel=numel,
        changed=changed,
        changed_absolute=counts["over_absolute"],
        changed_relative=counts["over_relative"],
        steps=tuple(measured.steps[row].tolist()),
        non_finite=counts["non_finite"],
        l1=sums["total"],
        sum_of_squares=sums["total_of_squares"],
        largest=sums["largest"],
    )


def combine(changes: Iterable[Change]) -> Change:
    """Add up the changes of several tensors; the order does not matter."""
    changes = list(changes)
    return Change(
        dtypes=tuple(sorted({dtype for change in changes for dtype in change.dtypes})),
        numel=sum(change.numel for change in changes),
        changed=sum(change.changed for change in changes),
        changed_absolute=sum(change.changed_absolute for change in changes),
        changed_relative=sum(change.changed_relative for change in changes),
        steps=tuple(map(sum, zip(_NO_STEPS, *(change.steps for change in changes), strict=True))),
        non_finite=sum(change.non_finite for change in changes),
        l1=math.fsum(change.l1 for change in changes),
        sum_of_squares=math.fsum(change.sum_of_squares for change in changes),
        largest=max((change.largest for change in changes), default=0.0),
    )


def _unchanged(changed: int, numel: int) -> float:
    return 1.0 - changed / numel if numel else 1.0
