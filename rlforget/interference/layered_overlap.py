"""How far two choices overlap that were each made layer by layer, beside what chance would give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from rlforget.delta.overlaps import SetOverlap


@dataclass(frozen=True)
class LayeredOverlap:
    """The overlap of two sets A and B that hold a number of things of each layer.

    Attributes:
        layers: The overlap in each layer.
    """

    layers: dict[str, SetOverlap]

    @property
    def total(self) -> SetOverlap:
        """All layers together."""
        parts = self.layers.values()
        names = ("population", "first", "second", "common")
        return SetOverlap(*(sum(getattr(part, name) for part in parts) for name in names))

    @property
    def by_chance(self) -> float:
        """How many would be common if B were drawn at random, as many in each layer as it has there."""
        return sum(part.first * part.of_first_by_chance for part in self.layers.values())

    @property
    def jaccard_by_chance(self) -> float:
        """|A and B| / |A or B| with the number in common that chance gives."""
        total = self.total
        union = total.first + total.second - self.by_chance
        return self.by_chance / union if union else 0.0

    @property
    def p(self) -> float:
        """The probability that as many or more are common if B is drawn at random: a sum of hypergeometric numbers."""
        import numpy as np
        from scipy.stats import hypergeom

        laws = [
            hypergeom.pmf(np.arange(min(part.first, part.second) + 1), part.population, part.first, part.second)
            for part in self.layers.values()
        ]
        law = reduce(np.convolve, laws, np.ones(1))
        return float(min(1.0, law[self.total.common :].sum()))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON."""
        own = {"common_by_chance": self.by_chance, "jaccard_by_chance": self.jaccard_by_chance, "p": self.p}
        layers = {name: part.to_dict() for name, part in self.layers.items()}
        return {**self.total.to_dict(), **own, "layers": layers}
