"""What is known of a conflict subspace once it is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

CUTOFF = 1e-5
"""Directions whose eigenvalue is below this share of the largest are left out: the Gram matrix's float32 products hide
them."""


@dataclass(frozen=True)
class GradientSpectrum:
    """The eigenvalues of one side's Gram matrix of per-sample gradients.

    Attributes:
        eigenvalues: w, descending, of all rows.
        rank: How many are above the cutoff.
        participation_ratio: (Σw)² / Σw²: as many equal ones would have it.
        effective_rank: exp of the entropy of w/Σw (Roy and Vetterli, 2007).
    """

    eigenvalues: tuple[float, ...]
    rank: int
    participation_ratio: float
    effective_rank: float

    @classmethod
    def of(cls, eigenvalues: Tensor) -> GradientSpectrum:
        """Describe eigenvalues, float64 [n], descending and not negative."""
        total = eigenvalues.sum()
        rank = int((eigenvalues > CUTOFF * eigenvalues[0]).sum())
        parts = eigenvalues[eigenvalues > 0] / total
        return cls(
            tuple(eigenvalues.tolist()),
            rank,
            float(total.square() / eigenvalues.square().sum()) if rank else 0.0,
            float(torch.exp(-(parts * parts.log()).sum())) if rank else 0.0,
        )


@dataclass(frozen=True)
class CurvePoint:
    """What taking back the share of δ along some directions does.

    Attributes:
        directions: How many, k.
        explained: 1 − ‖G_A (δ − u_k)‖² / ‖G_A δ‖²: the share of the damage in the linear model, which undoing them
            undoes. Of random directions it may fall below 0.
        side_effect: ‖G_B u_k‖, in nats; 0 where nothing is protected.
        norm_share: ‖u_k‖ / ‖δ‖.
        measured: What `evaluate` said of the model without u_k, or None.
    """

    directions: int
    explained: float
    side_effect: float
    norm_share: float
    measured: float | None = None


Curve = tuple[CurvePoint, ...]


@dataclass(frozen=True)
class MeasuredSubspace:
    """The conflict subspace of a change, measured.

    Attributes:
        restore: The spectrum of G_A G_Aᵀ.
        protect: Of G_B G_Bᵀ, or None where nothing is protected.
        damage: ‖G_A δ‖, root mean square over completions of the change of log π, in nats.
        shares: For each direction above the cutoff, by eigenvalue, its share of ‖G_A δ‖².
        angles: Principal angles between the two row spans, in radians, ascending; of directions above the cutoff.
        overlap: Mean squared cosine of these.
        overlap_by_chance: Its expectation for random subspaces of these dimensions in the space of weights.
        by_share: The curve over the directions that carry most of G_A δ.
        by_eigenvalue: The curve over those of the largest eigenvalues, which is known without δ.
        random: The control: as many random directions in the space of weights.
    """

    restore: GradientSpectrum
    protect: GradientSpectrum | None
    damage: float
    shares: tuple[float, ...]
    angles: tuple[float, ...]
    overlap: float
    overlap_by_chance: float
    by_share: Curve
    by_eigenvalue: Curve
    random: Curve

    def directions_for(self, share: float = 0.9, *, by: str = "share") -> int | None:
        """Return how few directions carry a share of ‖G_A δ‖²; None where those above the cutoff do not.

        Args:
            share: The share, in (0, 1].
            by: "share": those that carry most; "eigenvalue": those of the largest eigenvalues.
        """
        ordered = sorted(self.shares, reverse=True) if by == "share" else self.shares
        carried = torch.tensor(ordered, dtype=torch.float64).cumsum(0)
        reached = (carried >= share - 1e-12).nonzero()
        return int(reached[0]) + 1 if reached.numel() else None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        needed = {by: self.directions_for(by=by) for by in ("share", "eigenvalue")}
        return {**asdict(self), "directions_for_90_percent": needed}
