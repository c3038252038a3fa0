"""Which stage last changed a coordinate, how often it was changed, and how often that brought old bits back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlforget.delta.composed import BASE
from rlforget.delta.naming import KINDS, kind_of, layer_of
from rlforget.errors import CoordinateError, UnknownNameError
from rlforget.history.references import label
from rlforget.history.stage import Stage
from rlforget.weights import Layout, TensorMeta


@dataclass(frozen=True, eq=False)
class Blame:
    """Who changed what in one tensor.

    A stage that brought the tensor as a whole (new, resized or retyped) changed each of its coordinates once; what was
    there before it is another tensor.

    Attributes:
        name: The tensor.
        dtype: Its stored dtype.
        stages: The stages from the base to the one asked for, the oldest first.
        last: For each coordinate the number in `stages` of the one that last changed it; -1: the base. int32, of the
            tensor's shape.
        changes: How many stages changed it. int32, likewise.
        returns: How many of them brought back bits that it had at an earlier stage or in the base. int32, likewise.
    """

    name: str
    dtype: torch.dtype
    stages: tuple[Stage, ...]
    last: Tensor
    changes: Tensor
    returns: Tensor

    def total(self) -> Count:
        """Return the counts of the whole tensor."""
        return count(len(self.stages), self.last, self.changes, self.returns)

    def top(self, count: int) -> list[dict[str, Any]]:
        """Return the coordinates changed most often, the first ones where several were equally often."""
        order = self.changes.flatten().sort(descending=True, stable=True).indices[:count].tolist()
        return [self._coordinate(flat) for flat in order if int(self.changes.flatten()[flat])]

    def _coordinate(self, flat: int) -> dict[str, Any]:
        last = int(self.last.flatten()[flat])
        return {
            "at": unravelled(flat, tuple(self.last.shape)),
            "changes": int(self.changes.flatten()[flat]),
            "returns": int(self.returns.flatten()[flat]),
            "last": "base" if last == BASE else self.stages[last].name,
        }


@dataclass(frozen=True)
class Count:
    """How many coordinates each stage changed last, and how many changes there were.

    Attributes:
        numel: All coordinates.
        last: For the base and then each stage, how many it changed last; they add up to `numel`.
        changed: Coordinates that any stage changed.
        changes: Changes of them, by all stages.
        returns: Changes that brought back earlier bits.
    """

    numel: int
    last: tuple[int, ...]
    changed: int
    changes: int
    returns: int

    def to_dict(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """Return plain values, `last` by the stages' names."""
        names = ["base", *(stage.name for stage in stages)]
        return {
            "numel": self.numel,
            "last": dict(zip(names, self.last, strict=True)),
            "changed": self.changed,
            "changes": self.changes,
            "returns": self.returns,
        }


@dataclass(frozen=True)
class BlameSummary:
    """Who changed how much, tensor by tensor.

    Attributes:
        stages: The stages from the base to the one asked for, the oldest first.
        tensors: The counts of each tensor, in order.
    """

    stages: tuple[Stage, ...]
    tensors: dict[str, Count]

    @property
    def total(self) -> Count:
        """The counts of all tensors."""
        return self._added(list(self.tensors))

    @property
    def kinds(self) -> dict[str, Count]:
        """The counts by kind of tensor; kinds without tensors are left out."""
        groups = {kind: [name for name in self.tensors if kind_of(name) == kind] for kind in KINDS}
        return {kind: self._added(names) for kind, names in groups.items() if names}

    @property
    def layers(self) -> dict[int | None, Count]:
        """The counts by layer, in order; None, last, gathers the tensors outside of all layers."""
        groups: dict[int | None, list[str]] = {}
        for name in self.tensors:
            groups.setdefault(layer_of(name), []).append(name)
        order = sorted(groups, key=lambda layer: (layer is None, layer or 0))
        return {layer: self._added(groups[layer]) for layer in order}

    def top(self, count: int) -> list[str]:
        """Return the names of the tensors changed most often, by changes a coordinate."""
        touched = [name for name, one in self.tensors.items() if one.changes]
        return sorted(touched, key=lambda name: -self.tensors[name].changes / self.tensors[name].numel)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        stages = self.stages
        return {
            "stages": [{"id": stage.id, "name": stage.name} for stage in stages],
            "total": self.total.to_dict(stages),
            "kinds": {kind: count.to_dict(stages) for kind, count in self.kinds.items()},
            "layers": {
                "none" if layer is None else str(layer): count.to_dict(stages) for layer, count in self.layers.items()
            },
            "tensors": {name: count.to_dict(stages) for name, count in self.tensors.items()},
        }

    def _added(self, names: Sequence[str]) -> Count:
        return add(len(self.stages), [self.tensors[name] for name in names])


class Moment(NamedTuple):
    """A coordinate at one stage.

    Attributes:
        stage: None: the base.
        value: In the stored dtype, 0-d.
        changed: Whether this stage changed it.
        returned: Whether that brought back bits from before.
    """

    stage: Stage | None
    value: Tensor
    changed: bool
    returned: bool


def count(stages: int, last: Tensor, changes: Tensor, returns: Tensor) -> Count:
    """Count what `Blame` holds for a tensor, or a part of one, under a number of stages."""
    return Count(
        numel=last.numel(),
        last=tuple(torch.bincount(last.flatten() + 1, minlength=stages + 1).tolist()),
        changed=int((changes > 0).sum()),
        changes=int(changes.sum(dtype=torch.int64)),
        returns=int(returns.sum(dtype=torch.int64)),
    )


def add(stages: int, counts: Sequence[Count]) -> Count:
    """Add up counts under a number of stages."""
    return Count(
        numel=sum(one.numel for one in counts),
        last=tuple(sum(column) for column in zip((0,) * (stages + 1), *(one.last for one in counts), strict=True)),
        changed=sum(one.changed for one in counts),
        changes=sum(one.changes for one in counts),
        returns=sum(one.returns for one in counts),
    )


def named(weights: Layout, stages: Sequence[Stage], name: str) -> str:
    """Return the canonical name of a tensor at the last of some stages, the base where there is none.

    Raises:
        UnknownNameError: It has no such tensor.
    """
    if name not in weights:
        raise UnknownNameError(
            f"tensor {name!r}",
            expected=f"a tensor of {label(stages[-1] if stages else None)!r}",
            found="none of that name",
            fix="`rlforget blame --json` lists them, as does `blame_summary().tensors`.",
        )
    return weights.canonical(name)


def ravelled(name: str, at: Sequence[int], meta: TensorMeta) -> int:
    """Return the row-major flat index of a coordinate.

    Raises:
        CoordinateError: It is outside of the tensor, or has another number of axes.
    """
    found = None
    if len(at) != len(meta.shape):
        found = f"{len(at)} where it has {len(meta.shape)} axes"
    for axis, (i, size) in enumerate(zip(at, meta.shape, strict=False)):
        if found is None and not 0 <= i < size:
            found = f"index {i} on axis {axis}, of size {size}"
    if found is not None:
        raise CoordinateError(
            f"coordinate {', '.join(map(str, at)) or '()'} of {name!r}",
            expected=f"one index for each axis of its shape {list(meta.shape)}, counted from 0",
            found=found,
            fix="Give them as in 3,5.",
        )
    flat = 0
    for i, size in zip(at, meta.shape, strict=True):
        flat = flat * size + i
    return flat


def unravelled(flat: int, shape: Sequence[int]) -> list[int]:
    """Return the index along each axis of a row-major flat index."""
    at = []
    for size in reversed(shape):
        flat, i = divmod(flat, size)
        at.append(i)
    return at[::-1]
