"""`project`: what of after − before lies in the span of two bases, for lists of pairs, the difference never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.pair_checks import require_basis, require_equal_lengths, require_pair


def energy_share(energy: Tensor) -> Tensor:
    """The share of the difference's energy that the core holds, from `project`'s energies: ‖core‖² / ‖δ‖².

    Args:
        energy: float64 [..., 2], as `project` returned it for orthonormal U and V. Energies of several tensors add up.

    Returns:
        float64 [...], from 0 to 1 but for rounding; 0 where there is no difference.
    """
    whole, inside = energy.unbind(-1)
    return torch.where(whole > 0, inside / whole, torch.zeros_like(whole))


def residual_norm(energy: Tensor) -> Tensor:
    """The Frobenius norm of what the bases leave, ‖δ − U core Vᵀ‖, from `project`'s energies.

    Args:
        energy: float64 [..., 2], as in `energy_share`.

    Returns:
        float64 [...]: √(‖δ‖² − ‖core‖²). It knows no less than the rounding of ‖δ‖: some 1e-4 · ‖δ‖ with float32 sums.
    """
    whole, inside = energy.unbind(-1)
    return (whole - inside).clamp(min=0).sqrt()


def _check(before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor]) -> None:
    require_equal_lengths("project", before=before, after=after, u=u, v=v)
    for k, (old, new, left, right) in enumerate(zip(before, after, u, v, strict=True)):
        require_pair("project", k, old, new)
        require_basis("project", f"u[{k}]", left, old.shape[0])
        require_basis("project", f"v[{k}]", right, old.shape[1])


def _fake(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    _check(before, after, u, v)
    dtype = torch.float64 if float64 else torch.float32
    cores = [left.new_empty((left.shape[1], right.shape[1]), dtype=dtype) for left, right in zip(u, v, strict=True)]
    return cores, before[0].new_empty((len(before), 2), dtype=torch.float64)


@operator(_fake)
def project(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Express differences in pairs of bases: core = Uᵀ (after − before) V, and how much of their energy that is.

    On a GPU, pairs of equal shape, dtype and ranks share launches. Precision and order of sums are those of
    `delta_matmul`: the error of a core is at most 2**-15 · ‖U‖ · ‖δ‖ · ‖V‖ (Frobenius norms), typically 1e-8 of it.

    Args:
        before: Matrices [out, in] of any strides: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or float64.
        after: Matrices of the shapes and dtypes of `before`.
        u: float32 matrices [out, r_u], r_u from 1 to 256.
        v: float32 matrices [in, r_v], r_v from 1 to 256.
        float64: Whether to take differences, products and sums in float64.

    Returns:
        cores: float32 (float64 with `float64`), [r_u, r_v] each.
        energy: float64 [n, 2], the sums of squares of the difference and of the core. For orthonormal U and V,
            `energy_share` and `residual_norm` say what they mean.

    Raises:
        TypeError: for other dtypes.
        ValueError: for lists or shapes that do not fit, or tensors on different devices.

    Bytes moved, N coordinates of b bytes a pair: 2bN, the bases and the core.

    Source: the core of a matrix in two bases, as in the singular value decomposition of N. Halko, P. G. Martinsson,
    J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011), arXiv:0909.4061.
    """
    _check(before, after, u, v)
    kernels = backend(__name__, *before, *after, *u, *v)
    result: tuple[list[Tensor], Tensor] = kernels.project(before, after, u, v, float64)
    return result
