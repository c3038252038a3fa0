"""The factors of rank r that come closest to the change of a matrix, and how close what is written comes to it.

Source: N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
arXiv:0909.4061: algorithm 4.4 (subspace iteration) and section 5.1 (from a range to the singular value decomposition).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlforget.delta.exporting.matrices import Change
from rlforget_kernels.low_rank import gaussian

_OVERSAMPLING = 10  # directions that are searched beyond the rank
_ITERATIONS = 2


@dataclass(frozen=True)
class Fit:
    """How close factors come to a matrix δ.

    Attributes:
        rank: Of the factors.
        energy: ‖δ‖², Frobenius.
        missed: ‖δ − B A‖², of the factors as they are stored.
    """

    rank: int
    energy: float
    missed: float

    @property
    def error(self) -> float:
        """‖δ − B A‖ / ‖δ‖; 0 of a δ that is 0."""
        return math.sqrt(self.missed / self.energy) if self.energy else 0.0

    @property
    def kept(self) -> float:
        """The share of the energy that is kept, 1 − error²."""
        return 1.0 - self.error**2


def factors(change: Change, rank: int, *, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Fit]:
    """Factor a change as B · A, each with the square roots of the singular values.

    The same seed gives the same bits on one machine. The Gaussian test matrix is a hash of (seed, coordinate).

    Args:
        change: [out, in].
        rank: At least 1; cut to the smaller side.
        seed: Of the test matrix.
        dtype: Of the factors.

    Returns:
        B [out, r], A [r, in], and how close B · A comes, in float64, with the rounding to `dtype` in it.
    """
    rank = min(rank, *change.shape)
    u, s, v = _triplets(change, rank, seed)
    root = s.sqrt()
    left, right = (u * root).to(dtype), (v * root).mT.contiguous().to(dtype)
    return left, right, Fit(rank, change.energy, _missed(change, left, right))


def _triplets(change: Change, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular vectors and values: [out, rank], [rank], [in, rank], float32."""
    width = min(rank + _OVERSAMPLING, *change.shape)
    basis = torch.linalg.qr(change.times(gaussian(change.shape[1], width, seed, False).contiguous())).Q
    for _ in range(_ITERATIONS):
        across = torch.linalg.qr(change.transposed_times(basis)).Q
        basis = torch.linalg.qr(change.times(across)).Q
    across, small = torch.linalg.qr(change.transposed_times(basis))
    left, values, right = torch.linalg.svd(small)  # δ ≈ basis · smallᵀ · acrossᵀ
    u, v = basis @ right.mT[:, :rank], across @ left[:, :rank]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    return u * signs, values[:rank], v * signs


def _missed(change: Change, left: Tensor, right: Tensor) -> float:
    """Return ‖δ − left · right‖² = ‖δ‖² − 2⟨δ rightᵀ, left⟩ + ‖left · right‖², without the product."""
    b, a = left.double(), right.double()
    inner = float((change.times(a.mT.contiguous()) * b).sum())
    square = float(((b.mT @ b) * (a @ a.mT)).sum())
    return max(0.0, change.energy - 2 * inner + square)
