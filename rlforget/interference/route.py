"""A route: chosen channels and heads, their overlap with another's, and the coordinates that are theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.delta.overlaps import SetOverlap
from rlforget.errors import LayoutError
from rlforget.interference.channels import ChannelBand, Channels
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.layered_overlap import LayeredOverlap
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.circuits.slices import HeadSlice
    from rlforget.delta import Delta


@dataclass(frozen=True)
class Parts:
    """Which weights belong to which channels and heads, by canonical names.

    Attributes:
        channels: For each MLP, its weights.
        heads: Bands of the attentions' weights, with the (layer, head) that each belongs to.
        attentions: The attentions' names, layer by layer.
        unknown: Why the heads' weights cannot be told, where they cannot.
    """

    channels: dict[str, tuple[ChannelBand, ...]]
    heads: dict[HeadSlice, frozenset[tuple[int, int]]]
    attentions: tuple[str, ...]
    unknown: LayoutError | None = None

    @classmethod
    def of(cls, model: nn.Module, mlps: list[Channels], attentions: list[str]) -> Parts:
        """Find them in a model."""
        from rlforget.circuits.slices import HeadSlices

        canonical = open_weights(model).canonical
        channels = {
            mlp.name: tuple(ChannelBand(canonical(band.tensor), band.dim) for band in mlp.bands) for mlp in mlps
        }
        try:
            slices = HeadSlices(model)
        except LayoutError as fault:
            return cls(channels, {}, tuple(attentions), fault)
        heads = slices.shape[1]
        own = {band: owners for band, owners in slices.owners.items() if len(owners) < heads or band.part in "kv"}
        return cls(channels, own, tuple(attentions))


@dataclass(frozen=True)
class RouteOverlap:
    """The overlap of two routes.

    Attributes:
        channels: Of their MLP channels.
        heads: Of their attention heads.
    """

    channels: LayeredOverlap
    heads: LayeredOverlap

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON."""
        return {"channels": self.channels.to_dict(), "heads": self.heads.to_dict()}


@dataclass(frozen=True)
class Route:
    """Chosen parts of a model.

    Attributes:
        channels: For each MLP, bool [channels].
        heads: For each attention, bool [heads].
        parts: Which weights are whose.
    """

    channels: dict[str, Tensor]
    heads: dict[str, Tensor]
    parts: Parts

    @property
    def count(self) -> int:
        """How many channels and heads are chosen."""
        return sum(int(chosen.sum()) for part in (self.channels, self.heads) for chosen in part.values())

    def __and__(self, other: Route) -> Route:
        """Return what both hold.

        Raises:
            LayoutError: The other is a route in another model.
        """
        self._check(other)
        channels = {name: chosen & other.channels[name] for name, chosen in self.channels.items()}
        return Route(channels, {name: chosen & other.heads[name] for name, chosen in self.heads.items()}, self.parts)

    def overlap(self, other: Route) -> RouteOverlap:
        """Measure how far two routes overlap, layer by layer and in all.

        Raises:
            LayoutError: The other is a route in another model.
        """
        self._check(other)
        return RouteOverlap(_overlap(self.channels, other.channels), _overlap(self.heads, other.heads))

    def coordinates(self, delta: Delta) -> Coordinates:
        """Return the coordinates that `delta` changed in the route's own weights.

        A channel's are its rows of the gate and up projections, with their biases, and its column of the down
        projection. A head's are its rows of the query projection and its columns of the output projection, and the rows
        of keys and values that it reads: where several heads share these, one of them on the route is enough.

        Raises:
            LayoutError: The attention is of a form in which heads' weights cannot be told.
        """
        if self.parts.unknown is not None and any(bool(chosen.any()) for chosen in self.heads.values()):
            raise self.parts.unknown
        kept: dict[str, Tensor] = {}
        for name, bands in self.parts.channels.items():
            for band in bands:
                tensor = _changed(delta, band.tensor)
                if tensor is not None:
                    indices, shape = tensor
                    _add(kept, delta, band.tensor, band.chosen(indices, shape, self.channels[name]))
        for found, owners in self.parts.heads.items():
            tensor = _changed(delta, found.tensor)
            chosen = any(bool(self.heads[self.parts.attentions[layer]][head]) for layer, head in owners)
            if tensor is not None and chosen:
                _add(kept, delta, found.tensor, found.holds(*tensor))
        order = [name for name in delta if name in kept and bool(kept[name].any())]
        return Coordinates({name: delta[name].indices[kept[name]].to(torch.int64) for name in order})

    def _check(self, other: Route) -> None:
        mine, others = (
            {name: chosen.numel() for part in (one.channels, one.heads) for name, chosen in part.items()}
            for one in (self, other)
        )
        if mine != others:
            raise LayoutError(
                "the other route",
                expected="a route in the same model, with its MLPs and attentions",
                found="other names or numbers of channels or heads",
                fix="Measure both in models of one architecture.",
            )


def _overlap(one: dict[str, Tensor], other: dict[str, Tensor]) -> LayeredOverlap:
    def of(first: Tensor, second: Tensor) -> SetOverlap:
        return SetOverlap(first.numel(), int(first.sum()), int(second.sum()), int((first & second).sum()))

    return LayeredOverlap({name: of(chosen, other[name]) for name, chosen in one.items()})


def _known(delta: Delta, name: str) -> str:
    """Return what a delta calls the tensor that the model after it calls `name`."""
    before = next((old for old, new in delta.renamed.items() if new == name), name)
    return delta.aliases.get(before, before)


def _changed(delta: Delta, name: str) -> tuple[Tensor, tuple[int, ...]] | None:
    """Return the int64 indices of what a delta changed in a tensor, and its shape; None where it did not."""
    known = _known(delta, name)
    if known not in delta or not delta[known].changed:
        return None
    return delta[known].indices.to(torch.int64), delta[known].shape


def _add(kept: dict[str, Tensor], delta: Delta, name: str, found: Tensor) -> None:
    known = _known(delta, name)
    kept[known] = kept[known] | found if known in kept else found
