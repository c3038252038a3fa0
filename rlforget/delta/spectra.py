"""Singular values and leading singular subspaces of matrices before and after a change, and how far they turned.

Two matrices that are nearly the same have singular vectors that are nearly the same, and in float32 the difference is
rounding: a turn of less than some 3e-4 rad has a cosine that rounds to 1. So everything here is float64, and angles
come from sines where they are small (Björck and Golub, 1973).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_OVERSAMPLING = 8  # directions beyond those that are asked for
_BLOCKS = 5  # of the Krylov space: each takes two passes over a matrix


@dataclass(frozen=True)
class Spectrum:
    """What is known of a matrix's singular value decomposition; float64.

    Attributes:
        values: Singular values, descending: all of them, or the `rank` largest.
        left: [out, rank], the leading left singular vectors.
        right: [in, rank], the leading right ones.
        error: Each of the leading values lies this close to a singular value of the matrix, rounding apart; 0 where the
            decomposition is exact.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    error: float

    @property
    def rank(self) -> int:
        """How many leading singular vectors there are."""
        return self.left.shape[1]

    def reconstruction(self) -> Tensor:
        """Return the matrix of rank `rank` that comes closest, [out, in] float32."""
        scaled = (self.left * self.values[: self.rank]).float()
        return scaled @ self.right.float().mT


def exact(matrices: Tensor, rank: int) -> list[Spectrum]:
    """Decompose matrices of one shape together.

    Args:
        matrices: [n, out, in], any floating dtype.
        rank: How many singular vectors to keep, at most the smaller side.
    """
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    parts = zip(values, left[:, :, :rank], right.mT[:, :, :rank], strict=True)
    return [Spectrum(s, u, v, 0.0) for s, u, v in parts]


def leading(matrices: Tensor, rank: int, seed: int) -> list[Spectrum]:
    """Decompose large matrices as far as their `rank` largest singular values, by a randomised block Krylov method.

    It takes the passes over the matrices that as many power iterations would, and keeps what these throw away (Musco
    and Musco, 1504.05477): it tells singular values apart that lie close together, as those of weights do. The bound on
    the values comes after the fact, from the residual R = A V − U S (the other one, AᵀU − V S, is 0 by construction):
    in [0 A; Aᵀ 0] the leading values are Ritz values with that residual, so as many of its eigenvalues lie within ‖R‖₂
    of them (Kahan). The seed draws the same test matrix for every matrix as wide, so that the errors of a matrix before
    and after a small change are nearly the same.

    Args:
        matrices: [n, out, in] float64.
        rank: From 1 to the smaller side.
        seed: Of the test matrix.
    """
    _, out, width = matrices.shape
    block = min(rank + _OVERSAMPLING, out, width)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, block, generator=generator, dtype=torch.float64).to(matrices.device)
    image = matrices @ drawn
    basis = image[..., :0]  # [n, out, blocks · block], orthonormal columns
    held: list[Tensor] = []  # matricesᵀ · each block of the basis
    for _ in range(min(_BLOCKS, min(out, width) // block)):
        for _ in range(3):  # once for the image, twice where nothing new is left and that is rounding alone
            image = torch.linalg.qr(image - basis @ (basis.mT @ image)).Q
        basis = torch.cat([basis, image], dim=-1)
        held.append(matrices.mT @ image)
        image = matrices @ held[-1]
    across, small = torch.linalg.qr(torch.cat(held, dim=-1))
    turned, values, back = torch.linalg.svd(small)  # matrices ≈ basis · smallᵀ · acrossᵀ
    left, right = basis @ back.mT[..., :rank], across @ turned[..., :rank]
    values = values[..., :rank]
    missed = torch.linalg.matrix_norm(matrices @ right - left * values.unsqueeze(-2), ord=2)
    parts = zip(values, left, right, missed.tolist(), strict=True)
    return [Spectrum(s, u, v, error) for s, u, v, error in parts]


def angles(one: Tensor, other: Tensor) -> Tensor:
    """Return the principal angles between two subspaces, in radians.

    Args:
        one: [n, k] float64, an orthonormal basis.
        other: [n, k] float64, another.

    Returns:
        [k] float64, ascending; their cosines are the singular values of oneᵀ · other.
    """
    inner = one.mT @ other
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)  # descending
    sines = torch.linalg.svdvals(other - one @ inner).flip(0).clamp(0, 1)  # ascending
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def shift(before: Spectrum, after: Spectrum) -> float:
    """Return ‖σ(W₊) − σ(W₀)‖ / ‖σ(W₀)‖ over the singular values that are known; NaN of a matrix of zeros."""
    return float((after.values - before.values).norm() / before.values.norm())


def shuffled(change: Tensor, seed: int) -> Tensor:
    """Return a change whose rows and columns changed places and signs at random.

    It is as large as it was, with the same singular values and as many zeros, and has nothing to do any more with the
    matrix that it is added to: what it does to that matrix's spectrum is what chance does.

    Args:
        change: [..., out, in].
        seed: The same seed shuffles matrices of one shape alike.
    """
    generator = torch.Generator().manual_seed(seed)
    for dim in (-2, -1):
        size = change.shape[dim]
        places = torch.randperm(size, generator=generator)
        signs = 1 - 2 * torch.randint(2, (size,), generator=generator, dtype=torch.int8)
        signs = signs.to(change.device, change.dtype)
        change = change.index_select(dim, places.to(change.device)) * (signs if dim == -1 else signs.unsqueeze(-1))
    return change
