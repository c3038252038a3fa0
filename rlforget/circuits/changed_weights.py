"""What a delta did to the weights of single heads: the circuit's damage joined with the change that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.circuits.slices import Head, Heads, HeadSlice, HeadSlices
from rlforget.delta.sharded import check_whole
from rlforget.errors import LayoutError

if TYPE_CHECKING:
    from rlforget.delta import Delta, TensorDelta
    from rlforget.interference import Fisher

PARTS = ("q", "k", "v", "o")


@dataclass(frozen=True)
class SliceChange:
    """What a delta did to one part of a head's weights.

    Attributes:
        coordinates: How many the part has.
        changed: How many of them changed bits.
        norm: Euclidean norm of their change.
        damage: ½ Σ F δ² over them: the predicted rise of the loss, in nats a completion (a diagonal second order, so
            without the gradient's term); None without a Fisher.
    """

    coordinates: int
    changed: int
    norm: float
    damage: float | None

    @property
    def share(self) -> float:
        """The share of the coordinates that changed."""
        return self.changed / self.coordinates if self.coordinates else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return counts, share, norm and damage."""
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class HeadChange:
    """What a delta did to one head.

    Attributes:
        head: (layer, head).
        parts: Its `q`, `k`, `v` and `o` weights and biases, as far as the architecture has them.
        shared: How many heads have each part in common with it, itself included, e.g. the heads of a group that share
            keys and values; 1 for what is its alone. The largest, where a part has several tensors.
    """

    head: Head
    parts: dict[str, SliceChange]
    shared: dict[str, int]

    @property
    def total(self) -> SliceChange:
        """All parts together; what several heads share counts in full for each."""
        return _sum(list(self.parts.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {
            "head": list(self.head),
            "parts": {part: change.to_dict() for part, change in self.parts.items()},
            "shared": self.shared,
            "total": self.total.to_dict(),
        }


@dataclass(frozen=True)
class ChangedWeights:
    """What a delta did to chosen heads, and to all others.

    Attributes:
        heads: The chosen heads, in order.
        others: The parts of all other heads together, each slice counted once, to hold the chosen ones against; a slice
            that a chosen head shares is not among them.
    """

    heads: list[HeadChange]
    others: dict[str, SliceChange]

    def table(self) -> str:
        """Return a table for people, at most 100 columns wide."""
        damage = any(one.total.damage is not None for one in self.heads)
        row = "{:<10}" + " {:>9}" * (len(PARTS) + 1) + " {:>10}" + (" {:>10}" if damage else "")
        lines = [row.format("head", *PARTS, "all", "L2", *(["damage"] if damage else []))]
        named = [(f"{one.head[0]}:{one.head[1]}", one.parts) for one in self.heads]
        for name, parts in [*named, ("all others", self.others)]:
            total = _sum(list(parts.values()))
            shares = [f"{100 * parts[part].share:.2f}%" if part in parts else "–" for part in PARTS]
            tail = ["–" if total.damage is None else f"{total.damage:.2e}"] if damage else []
            lines.append(row.format(name, *shares, f"{100 * total.share:.2f}%", f"{total.norm:.2e}", *tail))
        lines.append("q, k, v, o, all: share of the head's coordinates whose bits changed; L2: norm of their change.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {
            "heads": [one.to_dict() for one in self.heads],
            "others": {part: change.to_dict() for part, change in self.others.items()},
        }


def head_changes(model: nn.Module, delta: Delta, heads: Heads, *, fisher: Fisher | None = None) -> ChangedWeights:
    """Say what a delta did to the query, key, value and output weights of chosen heads.

    Under grouped-query attention the keys and values of a group count for each of its heads.

    Args:
        model: A transformers causal language model of the delta's architecture; only its layout is read.
        delta: The change, e.g. `rf.diff(base, sft)`.
        heads: A bool mask [layers, heads], e.g. the vulnerable heads of a comparison, or pairs (layer, head).
        fisher: The task's Fisher at the delta's coordinates (`rf.fisher(model, batches, at=delta)`), for the predicted
            damage.

    Raises:
        ConfigError: A head that the model does not have.
        LayoutError: The delta is of another architecture, the Fisher of another delta, or the model's attention of an
            unknown form.
    """
    check_whole(delta)
    slices = HeadSlices(model)
    chosen = slices.heads(heads)
    known = {band: _change(delta, band, fisher) for band in slices.owners}
    found = [_of_head(slices, known, head) for head in sorted(chosen)]
    rest: dict[str, list[SliceChange]] = {}
    for band, owners in slices.owners.items():
        if chosen.isdisjoint(owners):
            rest.setdefault(band.part, []).append(known[band])
    return ChangedWeights(found, {part: _sum(rest[part]) for part in PARTS if part in rest})


def _of_head(slices: HeadSlices, known: Mapping[HeadSlice, SliceChange], head: Head) -> HeadChange:
    parts: dict[str, list[SliceChange]] = {}
    shared: dict[str, int] = {}
    for band in slices.of(head):
        parts.setdefault(band.part, []).append(known[band])
        shared[band.part] = max(shared.get(band.part, 1), len(slices.owners[band]))
    present = [part for part in PARTS if part in parts]
    return HeadChange(head, {part: _sum(parts[part]) for part in present}, {part: shared[part] for part in present})


def _change(delta: Delta, band: HeadSlice, fisher: Fisher | None) -> SliceChange:
    if band.tensor not in delta:
        raise LayoutError(
            f"tensor {band.tensor!r}",
            expected="one of the delta's tensors",
            found="none of that name",
            fix="Make the delta from checkpoints of this model.",
        )
    tensor = delta[band.tensor]
    width = tensor.shape[band.dim] if band.dim < len(tensor.shape) else 0
    if band.stop > max(width, 1):
        raise LayoutError(
            f"tensor {band.tensor!r}",
            expected=f"at least {band.stop} positions in dimension {band.dim}, as in the model",
            found=str(tuple(tensor.shape)),
            fix="Make the delta from checkpoints of this model.",
        )
    inside = band.holds(tensor.indices.to(torch.int64), tensor.shape)
    squares = tensor.values[inside].double().square()
    coordinates = tensor.numel * (band.stop - band.start) // max(width, 1)
    damage = None
    if fisher is not None:
        damage = float((squares * _fisher_of(fisher, tensor)[inside].double()).sum()) / 2
    return SliceChange(coordinates, int(inside.sum()), float(squares.sum().sqrt()), damage)


def _fisher_of(fisher: Fisher, tensor: TensorDelta) -> Tensor:
    if not tensor.changed:
        return torch.zeros(0)
    values = fisher.values.get(tensor.name)
    if values is None or values.numel() != tensor.changed:
        raise LayoutError(
            f"the Fisher of {tensor.name!r}",
            expected=f"{tensor.changed} coordinates, as the delta changed",
            found="no such tensor" if values is None else str(values.numel()),
            fix="Measure it with rf.fisher(..., at=delta) for this very delta.",
        )
    return values


def _sum(parts: list[SliceChange]) -> SliceChange:
    damages = [one.damage for one in parts if one.damage is not None]
    return SliceChange(
        sum(one.coordinates for one in parts),
        sum(one.changed for one in parts),
        sum(one.norm**2 for one in parts) ** 0.5,
        sum(damages) if damages else None,
    )
