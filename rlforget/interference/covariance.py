"""Second moments of vectors that stream by: whole where they are narrow, low-rank plus diagonal where they are wide."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

WIDE = 512
"""Up to this width a second moment is kept whole; beyond, as a low-rank part and a diagonal."""
RANK = 128
"""Rank of that part."""
_OVERSAMPLING = 16
_ROWS = 8192


class Covariance:
    """The sum of x xᵀ over vectors x, streamed: products in float32, sums in float64.

    Wide ones are sketched, C ≈ Q diag(λ) Qᵀ + diag(d): Q and λ by the single-view Nyström method, d what the diagonal,
    which is kept exactly, has beyond that. Memory: width² or 145 · width numbers.

    Args:
        width: Entries of a vector.
        device: Where to keep the sums.
        seed: Seed of the sketch, the same for all that are to be compared.

    Source: J. Tropp, A. Yurtsever, M. Udell, V. Cevher, "Fixed-rank approximation of a positive-semidefinite matrix
    from streaming data", NeurIPS 2017, arXiv:1706.05736, algorithm 3.
    """

    def __init__(self, width: int, device: torch.device, *, seed: int = 0) -> None:
        self.width, self.wide, self.device = width, width > WIDE, device
        self._test = _test_matrix(width, seed).to(device) if self.wide else None
        columns = width if self._test is None else self._test.shape[1]
        self._sum = torch.zeros(width, columns, dtype=torch.float64, device=device)
        self._squares = torch.zeros(width, dtype=torch.float64, device=device)
        self._leading: tuple[Tensor, Tensor] | None = None

    def add_(self, vectors: Tensor, weight: float = 1.0) -> None:
        """Add the outer products of `vectors`, [n, width] of any float dtype, `weight` times."""
        self._leading = None
        for start in range(0, vectors.shape[0], _ROWS):
            part = vectors[start : start + _ROWS].float()
            self._sum += weight * (part.T @ (part if self._test is None else part @ self._test.float()))
            self._squares += weight * part.square().sum(0)

    def scale_(self, factor: float) -> None:
        """Multiply by `factor`."""
        self._leading = None
        self._sum *= factor
        self._squares *= factor

    @property
    def mean(self) -> float:
        """Mean of the diagonal."""
        return float(self._squares.mean())

    @property
    def finite(self) -> bool:
        """Whether no NaN and no infinity went in."""
        return bool(self._squares.isfinite().all())

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return C V for V float64 [width, k]."""
        if not self.wide:
            return self._sum @ vectors
        basis, values = self.leading()
        rest = (self._squares - basis.square() @ values).clamp_min(0.0)
        return basis @ (values.unsqueeze(1) * (basis.T @ vectors)) + rest.unsqueeze(1) * vectors

    def leading(self) -> tuple[Tensor, Tensor]:
        """Return the leading eigenvectors of a wide one's low-rank part [width, RANK], and the eigenvalues [RANK]."""
        if self._leading is None:
            self._leading = self._nystrom()
        return self._leading

    def _nystrom(self) -> tuple[Tensor, Tensor]:
        assert self._test is not None
        shift = torch.finfo(torch.float32).eps * self._sum.norm()  # the products' own rounding
        sketch = self._sum + shift * self._test
        core = self._test.T @ sketch
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if int(failed):  # nothing was added, or next to nothing
            return sketch[:, :RANK] * 0.0, self._squares[:RANK] * 0.0
        vectors, roots, _ = torch.linalg.svd(
            torch.linalg.solve_triangular(factor, sketch.T, upper=False).T, full_matrices=False
        )
        return vectors[:, :RANK], (roots.square() - shift).clamp_min(0.0)[:RANK]


@functools.lru_cache(maxsize=8)
def _test_matrix(width: int, seed: int) -> Tensor:
    """Orthonormal columns at random, float64 [width, RANK + 16]: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, min(RANK + _OVERSAMPLING, width), generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(drawn).Q
    return orthonormal
