"""The rise of a loss along a change by Taylor's theorem with its remainder: L(θ + tδ) − L(θ) = t g·δ + R(t),

    R(t) = ∫₀ᵗ (t − s) q(s) ds,   q(s) = δᵀ H(θ + sδ) δ.

With q at θ alone, held constant, R(t) = ½ t² δᵀHδ, the second order. With q at a few points it follows the curvature as
it changes along δ, as it does where a model that was certain comes to doubt. The points are those of Gauss–Radau
quadrature for the weight 1 − s, which begin at 0: m of them are exact, at t = 1, for q of degree 2m − 2.
"""

from __future__ import annotations

from collections.abc import Sequence


def points_along(count: int) -> list[float]:
    """Return where q is taken, ascending shares of δ in [0, 1): the first is 0."""
    from scipy.special import roots_jacobi

    if count == 1:
        return [0.0]
    inner, _ = roots_jacobi(count - 1, 1, 1)  # the weight (1 − s) s of the points other than 0, on [−1, 1]
    return [0.0, *((one + 1.0) / 2.0 for one in inner.tolist())]


def remainder_weights(points: Sequence[float], t: float) -> list[float]:
    """Return w with R(t) = Σ w q(point) for the polynomial q through the points."""
    from numpy.polynomial import Polynomial

    weights = []
    for i, own in enumerate(points):
        basis = Polynomial([1.0])
        for other in (*points[:i], *points[i + 1 :]):
            basis *= Polynomial([-other, 1.0]) / (own - other)
        kernel = (basis * Polynomial([t, -1.0])).integ()
        weights.append(float(kernel(t) - kernel(0.0)))
    return weights
