"""How far two deltas touch the same coordinates and the same neurons, beside what chance alone would give."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.neurons import neuron_edits, top_neurons
from rlforget.delta.sharded import check_whole
from rlforget.delta.tensor_delta import TensorDelta
from rlforget.errors import LayoutError
from rlforget.weights import pair_up

_CHUNK = 1 << 16  # coordinates looked up at a time, in a stretch of the other side that fits a cache


@dataclass(frozen=True)
class SetOverlap:
    """The overlap of two sets A and B drawn from `population` things.

    Shares of an empty set are 0.

    Attributes:
        population: How many things there are.
        first: |A|.
        second: |B|.
        common: |A and B|.
    """

    population: int
    first: int
    second: int
    common: int

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B|."""
        return _ratio(self.common, self.first + self.second - self.common)

    @property
    def jaccard_by_chance(self) -> float:
        """The Jaccard index of two independent sets of these sizes: pq / (p + q - pq), p and q their shares of all."""
        p, q = _ratio(self.first, self.population), _ratio(self.second, self.population)
        return _ratio(p * q, p + q - p * q)

    @property
    def of_first(self) -> float:
        """|A and B| / |A|; by chance |B| / population."""
        return _ratio(self.common, self.first)

    @property
    def of_second(self) -> float:
        """|A and B| / |B|; by chance |A| / population."""
        return _ratio(self.common, self.second)

    @property
    def of_first_by_chance(self) -> float:
        """The share of A that an independent B would hold."""
        return _ratio(self.second, self.population)

    @property
    def of_second_by_chance(self) -> float:
        """The share of B that an independent A would hold."""
        return _ratio(self.first, self.population)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and shares as plain numbers."""
        return {
            **asdict(self),
            "jaccard": self.jaccard,
            "jaccard_by_chance": self.jaccard_by_chance,
            "of_first": self.of_first,
            "of_first_by_chance": self.of_first_by_chance,
            "of_second": self.of_second,
            "of_second_by_chance": self.of_second_by_chance,
        }


@dataclass(frozen=True)
class Overlap:
    """The overlap of two deltas.

    Attributes:
        coordinates: Of the changed coordinates.
        neurons: Of the 10% most edited neurons of each (MLP channels, see `rlforget.delta.neurons`).
    """

    coordinates: SetOverlap
    neurons: SetOverlap

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON."""
        return {"coordinates": self.coordinates.to_dict(), "neurons": self.neurons.to_dict()}


def overlap(first: Delta, second: Delta) -> Overlap:
    """Measure how far two deltas overlap.

    Sources: inclusions from arXiv 2505.11711; Jaccard index beside its chance level from arXiv 2511.08567; the top 10%
    of neurons from arXiv 2606.02398.

    Args:
        first: A delta.
        second: A delta of the same tensors, e.g. of another domain from the same base.

    Raises:
        LayoutError: The two are of different tensors.
    """
    check_whole(first, second)
    pairs = pair_up(first.layout, second.layout)
    if len(pairs) != len(first) or len(pairs) != len(second):
        raise LayoutError(
            "the second delta",
            expected="the same tied tensors in both deltas",
            found="tensors tied in one and apart in the other",
            fix="Compare deltas of models that are tied alike.",
        )
    common = sum(_common(first[pair.before], second[pair.after]) for pair in pairs)
    coordinates = SetOverlap(first.numel, first.changed, second.changed, common)
    renamed = Delta([second[pair.after] for pair in pairs])
    top_a = top_neurons(neuron_edits(Delta([first[pair.before] for pair in pairs])))
    top_b = top_neurons(neuron_edits(renamed))
    neurons = SetOverlap(top_a.numel(), int(top_a.sum()), int(top_b.sum()), int((top_a & top_b).sum()))
    return Overlap(coordinates, neurons)


def _common(first: TensorDelta, second: TensorDelta) -> int:
    """Count the indices that are in both, by looking the fewer ones up among the more."""
    few, many = sorted((first.indices, second.indices), key=torch.Tensor.numel)
    if not few.numel():
        return 0
    count = 0
    for chunk in torch.split(few, _CHUNK):
        start, last = torch.searchsorted(many, chunk[[0, -1]]).tolist()
        stretch = many[start : last + 1]
        if stretch.numel():
            found = stretch[torch.searchsorted(stretch, chunk).clamp_(max=stretch.numel() - 1)]
            count += int((found == chunk).sum())
    return count


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
