"""Synergy or conflict: whether two updates point the same way, by module and on the route that two domains share.

2606.02398 finds that the gradients of two domains may be nearly orthogonal over the whole model while single modules
conflict and others work together, which cancels in the average; and that the directions of updates on the shared route
decide which of the two it is. The cosine on the shared route's coordinates beside the global one is a reconstruction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlforget.errors import LayoutError
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.route import Route
from rlforget.weights import pair_up

if TYPE_CHECKING:
    from rlforget.delta import Delta, TensorDelta


@dataclass(frozen=True)
class Alignment:
    """How two vectors lie to each other; of several parts it adds up.

    Attributes:
        dot: Their inner product.
        first: The first one's squared norm.
        second: The second one's.
        common: How many entries are not 0 in both.
    """

    dot: float
    first: float
    second: float
    common: int

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> Alignment:
        """Measure two vectors, in float64."""
        one, other = one.flatten().double(), other.flatten().double()
        common = int(((one != 0) & (other != 0)).sum())
        return cls(float(one @ other), float(one @ one), float(other @ other), common)

    @classmethod
    def total(cls, parts: Iterable[Alignment]) -> Alignment:
        """Add up the alignments of disjoint parts."""
        parts = list(parts)
        return cls(
            math.fsum(part.dot for part in parts),
            math.fsum(part.first for part in parts),
            math.fsum(part.second for part in parts),
            sum(part.common for part in parts),
        )

    @property
    def cosine(self) -> float:
        """The cosine of the angle between them; 0 where one of them is 0."""
        norms = math.sqrt(self.first) * math.sqrt(self.second)
        return max(-1.0, min(1.0, self.dot / norms)) if norms else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return the cosine, the norms, and the number of entries in common."""
        norms = {"first_norm": math.sqrt(self.first), "second_norm": math.sqrt(self.second)}
        return {"cosine": self.cosine, **norms, "common": self.common}


def in_order(modules: dict[str, Alignment]) -> list[str]:
    """Return the names of modules from the most conflicting to the most synergistic, without those that say nothing."""
    telling = [name for name, one in modules.items() if one.first and one.second]
    return sorted(telling, key=lambda name: modules[name].cosine)


@dataclass(frozen=True)
class Synergy:
    """How two updates lie to each other.

    Attributes:
        everywhere: For each module, over all of its coordinates.
        route: For each module that the shared route touches, on the route's coordinates; empty without a route.
    """

    everywhere: dict[str, Alignment]
    route: dict[str, Alignment]

    @property
    def total(self) -> Alignment:
        """Over the whole model."""
        return Alignment.total(self.everywhere.values())

    @property
    def on_route(self) -> Alignment:
        """Over all of the route."""
        return Alignment.total(self.route.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON; modules with the most conflicting first."""
        parts = {"everywhere": self.everywhere, "route": self.route}
        modules = {key: {name: part[name].to_dict() for name in in_order(part)} for key, part in parts.items()}
        return {"total": self.total.to_dict(), "on_route": self.on_route.to_dict(), "modules": modules}


def synergy(first: Delta, second: Delta, route: Route | None = None) -> Synergy:
    """Compare the directions of two updates, e.g. of an earlier domain and of a later one.

    Args:
        first: An update.
        second: Another of the same tensors, from the same weights or from others.
        route: What the domains share, `routes_a.shared(routes_b)`; None compares everywhere alone.

    Raises:
        LayoutError: The two are of different tensors.
    """
    pairs = pair_up(first.layout, second.layout)
    names = [(pair.before, pair.after) for pair in pairs]
    if len(names) != len(first) or len(names) != len(second):
        raise LayoutError(
            "the second delta",
            expected="the same tied tensors in both deltas",
            found="tensors tied in one and apart in the other",
            fix="Compare deltas of models that are tied alike.",
        )
    everywhere = by_module({name: _aligned(first[name], second[other]) for name, other in names})
    if route is None:
        return Synergy(everywhere, {})
    kept = [route.coordinates(delta) for delta in (first, second)]
    parts = {
        name: _aligned(first[name], second[other], kept[0], kept[1])
        for name, other in names
        if name in kept[0] or other in kept[1]
    }
    return Synergy(everywhere, by_module(parts))


def _aligned(
    one: TensorDelta, other: TensorDelta, one_kept: Coordinates | None = None, other_kept: Coordinates | None = None
) -> Alignment:
    """Measure two updates of one tensor at what they changed, or at those of these coordinates that are kept."""
    (places, values), (others, other_values) = _entries(one, one_kept), _entries(other, other_kept)
    here, there = torch.isin(places, others, assume_unique=True), torch.isin(others, places, assume_unique=True)
    dot = float(values[here] @ other_values[there])
    return Alignment(dot, float(values @ values), float(other_values @ other_values), int(here.sum()))


def _entries(tensor: TensorDelta, kept: Coordinates | None) -> tuple[Tensor, Tensor]:
    """Return the flat indices, int64 ascending, and the changes there, float64."""
    indices, values = tensor.indices.to(torch.int64), tensor.values.double()
    if kept is None:
        return indices, values
    if tensor.name not in kept:
        return indices[:0], values[:0]
    places = tensor.positions(kept[tensor.name])
    return indices[places], values[places]


def by_module(parts: dict[str, Alignment]) -> dict[str, Alignment]:
    """Add up the alignments of tensors by the modules that own them."""
    groups: defaultdict[str, list[Alignment]] = defaultdict(list)
    for name, part in parts.items():
        groups[name.rpartition(".")[0] or name].append(part)
    return {name: Alignment.total(members) for name, members in groups.items()}
