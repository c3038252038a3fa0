"""How much changed: sparsity by bits and under two published tolerances, norms, and steps.

Sources of the tolerances: |after - before| <= 1e-5 counts as unchanged in arXiv 2505.11711, and
|after - before| <= 1e-3 * max(|before|, |after|) in arXiv 2511.08567. For non-zero bfloat16 values the second one means
equal bits, so a sparsity says little without the storage dtype beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rlforget.delta.naming import KINDS, kind_of, layer_of
from rlforget.delta.sparse import Delta, TensorDelta

ABSOLUTE_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-3

_TILE = 4096  # differences summed in one go; the tiles' sums are then added without rounding
_CHUNK = _TILE << 4  # coordinates held in float64 at a time: they and what is made of them fit a cache


@dataclass(frozen=True)
class Change:
    """How much a tensor, or a group of tensors, changed.

    Attributes:
        dtypes: The storage dtypes, sorted.
        numel: All coordinates.
        changed: Those whose stored bits differ.
        changed_absolute: Those beyond the absolute tolerance, 1e-5.
        changed_relative: Those beyond the relative tolerance, 1e-3 of max(|before|, |after|).
        unit_steps: Those that moved to a neighbouring representable value, by one unit in the last place.
        non_finite: Changed coordinates that are NaN or infinite before or after. They count as beyond both tolerances
            and are left out of the norms.
        l1: Sum of |after - before|, in float64.
        sum_of_squares: Sum of (after - before)**2, in float64.
        largest: Largest |after - before|.
    """

    dtypes: tuple[str, ...] = ()
    numel: int = 0
    changed: int = 0
    changed_absolute: int = 0
    changed_relative: int = 0
    unit_steps: int = 0
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
    def unit_step_share(self) -> float:
        """The share of the changed coordinates that moved by one unit in the last place; 0 where none changed."""
        return self.unit_steps / self.changed if self.changed else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return counts, shares and norms as plain numbers."""
        return {
            "dtypes": list(self.dtypes),
            "numel": self.numel,
            "changed": self.changed,
            "changed_absolute": self.changed_absolute,
            "changed_relative": self.changed_relative,
            "sparsity": self.sparsity,
            "sparsity_absolute": self.sparsity_absolute,
            "sparsity_relative": self.sparsity_relative,
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
        tensors: {tensor name: its change}, in the delta's order.
    """

    tensors: dict[str, Change]

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
        }


def measure(delta: Delta) -> DeltaStats:
    """Measure every tensor of a delta, in O(changed) time and in bounded memory."""
    return DeltaStats({name: measure_tensor(tensor) for name, tensor in delta.items()})


def combine(changes: Iterable[Change]) -> Change:
    """Add up the changes of several tensors; the order does not matter."""
    changes = list(changes)
    return Change(
        dtypes=tuple(sorted({dtype for change in changes for dtype in change.dtypes})),
        numel=sum(change.numel for change in changes),
        changed=sum(change.changed for change in changes),
        changed_absolute=sum(change.changed_absolute for change in changes),
        changed_relative=sum(change.changed_relative for change in changes),
        unit_steps=sum(change.unit_steps for change in changes),
        non_finite=sum(change.non_finite for change in changes),
        l1=math.fsum(change.l1 for change in changes),
        sum_of_squares=math.fsum(change.sum_of_squares for change in changes),
        largest=max((change.largest for change in changes), default=0.0),
    )


def measure_tensor(tensor: TensorDelta) -> Change:
    """Measure one tensor; unchanged coordinates are within every tolerance, so only the changed ones are read."""
    start = Change(dtypes=(_short(tensor.dtype),), numel=tensor.numel)
    chunks = (
        _measure_chunk(before, after)
        for before, after in zip(torch.split(tensor.before, _CHUNK), torch.split(tensor.after, _CHUNK), strict=True)
    )
    return combine([start, *chunks])


def _measure_chunk(before: torch.Tensor, after: torch.Tensor) -> Change:
    """Measure values that are known to differ in their bits."""
    old, new = before.to(torch.float64), after.to(torch.float64)
    finite = old.isfinite() & new.isfinite()
    size = torch.where(finite, (new - old).abs(), 0.0)
    scale = torch.where(finite, torch.maximum(old.abs(), new.abs()), 0.0)
    return Change(
        changed=before.numel(),
        changed_absolute=int((~finite | (size > ABSOLUTE_TOLERANCE)).sum()),
        changed_relative=int((~finite | (size > RELATIVE_TOLERANCE * scale)).sum()),
        unit_steps=int((finite & _neighbours(before, after)).sum()),
        non_finite=int((~finite).sum()),
        l1=_sum(size),
        sum_of_squares=_sum(size.square()),
        largest=float(size.max()) if size.numel() else 0.0,
    )


def _neighbours(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Say where one value is the next representable one after the other. -0 and +0 are one value."""
    old, new = _rank(before), _rank(after)
    # The higher one is never the lowest integer, so that this does not wrap where a difference would.
    return (torch.maximum(old, new) - 1 == torch.minimum(old, new)) & (old != new)


def _rank(values: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of the values, neighbours one apart. int64."""
    if not values.dtype.is_floating_point:
        return values.to(torch.int64)
    bits = values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    magnitude = bits.to(torch.int64) & torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, -magnitude, magnitude)


def _sum(values: torch.Tensor) -> float:
    """Add up float64 values to the same bits on every run: by tiles of fixed size, then exactly."""
    tiles = torch.nn.functional.pad(values, (0, -values.numel() % _TILE)).view(-1, _TILE)
    return math.fsum(tiles.sum(dim=1).tolist())


def _unchanged(changed: int, numel: int) -> float:
    return 1.0 - changed / numel if numel else 1.0


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
