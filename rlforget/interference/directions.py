"""The principal directions of many vectors that pass by once, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Directions:
    """The principal directions of some vectors about the origin.

    Attributes:
        basis: [width, r] float64, orthonormal columns, the largest first.
        values: [r] float64: the mean square of the vectors along each.
        energy: The mean square of the vectors.
        error: By how much any direction's mean square may be above what `basis` and `values` say of it, beside what
            lies outside of the directions that were kept; 0 where nothing was dropped on the way.
    """

    basis: Tensor
    values: Tensor
    energy: float
    error: float

    @property
    def share(self) -> float:
        """The share of the energy that lies along the directions."""
        return min(1.0, float(self.values.sum()) / self.energy) if self.energy else 0.0

    def overlap(self, other: Directions) -> float:
        """Return the mean squared cosine of the principal angles to another's directions: ‖UᵀV‖² / r.

        By chance it is the wider basis's r / width.
        """
        inner = self.basis.mT @ other.basis
        fewer = min(inner.shape)
        return float(inner.square().sum()) / fewer if fewer else 0.0


class Sketch:
    """Frequent directions of the rows that are added (Liberty, 1206.0594).

    It keeps `size` rows B such that for every unit vector x, 0 ≤ ‖Ax‖² − ‖Bx‖² ≤ what `dropped` says, A being all rows
    that were added. It is exact as long as they fit, or do not span more than `size` dimensions.

    Args:
        width: Entries of a row.
        size: Rows to keep.
        device: Where the rows lie.
    """

    def __init__(self, width: int, size: int, device: torch.device) -> None:
        self._size = size
        self._rows = torch.zeros(0, width, dtype=torch.float64, device=device)
        self.count = 0
        self.energy = 0.0
        self.dropped = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows [n, width], as many at once as there are."""
        self.count += rows.shape[0]
        for part in rows.split(4 * self._size):  # type: ignore[no-untyped-call]
            part = part.double()
            self.energy += float(part.square().sum())
            self._rows = torch.cat([self._rows, part])
            if self._rows.shape[0] > 4 * self._size:
                self._shrink()

    def _shrink(self) -> None:
        """Turn the rows to orthogonal ones and take from each what the first one beyond `size` has."""
        squares, vectors = self._turned()
        least = squares[self._size] if squares.numel() > self._size else squares.new_zeros(())
        self.dropped += float(least)
        squares, vectors = squares[: self._size], vectors[: self._size]
        self._rows = (squares - least).clamp(min=0).sqrt().unsqueeze(1) * vectors

    def _turned(self) -> tuple[Tensor, Tensor]:
        """Return the squared singular values of the rows, descending, and the right singular vectors as rows."""
        if self._rows.shape[0] > self._rows.shape[1]:
            squares, vectors = torch.linalg.eigh(self._rows.mT @ self._rows)
            return squares.flip(0).clamp(min=0), vectors.mT.flip(0)
        squares, mixed = torch.linalg.eigh(self._rows @ self._rows.mT)
        squares = squares.flip(0).clamp(min=0)
        vectors = mixed.mT.flip(0) @ self._rows
        return squares, vectors / squares.sqrt().clamp(min=1e-300).unsqueeze(1)

    def directions(self, rank: int) -> Directions:
        """Return the `rank` principal directions; fewer where the rows do not span as many."""
        squares, vectors = self._turned()
        count = max(self.count, 1)
        kept = min(rank, int((squares > 1e-12 * squares[:1].sum()).sum()))
        basis = torch.linalg.qr(vectors[:kept].mT).Q
        return Directions(basis, squares[:kept] / count, self.energy / count, self.dropped / count)
