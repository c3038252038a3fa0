"""`project_sparse`: what of a delta's changed coordinates lies in the span of two bases, without a dense tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_indices
from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.pair_checks import require_basis


def _check(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool) -> None:
    require_indices("project_sparse", indices, values, "values")
    if values.dtype is not torch.float32 and not (float64 and values.dtype is torch.float64):
        expected = "float32 or float64" if float64 else "float32"
        raise TypeError(f"project_sparse: values: expected {expected}; found {values.dtype}")
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"project_sparse: shape: expected (out, in); found {tuple(shape)}")
    require_basis("project_sparse", "u", u, shape[0])
    require_basis("project_sparse", "v", v, shape[1])


def _fake(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False) -> Tensor:
    _check(indices, values, shape, u, v, float64)
    return u.new_empty((u.shape[1], v.shape[1]), dtype=torch.float64 if float64 else torch.float32)


@operator(_fake)
def project_sparse(
    indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False
) -> Tensor:
    """Express a sparse difference in a pair of bases: core = Uᵀ δ V, δ being `values` at `indices` and 0 elsewhere.

    Equal to the core of `project` but for the rounding of sums, which are taken in a fixed order, in float32 or on
    request in float64. The error is at most 2⁻¹⁵ (2⁻⁴³ in float64) · ‖U‖ · ‖δ‖ · ‖V‖ (Frobenius norms).
    ‖values‖² and the squares of the core make the energies that `project.energy_share` takes.

    Args:
        indices: int32 or int64, 1-D, strictly ascending: row-major flat indices into a matrix of `shape`.
        values: float32, or with `float64` float64 too; one for each index: after − before.
        shape: (out, in).
        u: float32 [out, r_u], r_u from 1 to 256.
        v: float32 [in, r_v], r_v from 1 to 256.
        float64: Whether to take products and sums in float64.

    Returns:
        float32 (float64 with `float64`), [r_u, r_v].

    Raises:
        TypeError: for other dtypes.
        IndexError: for an index beyond the matrix.
        ValueError: for indices that do not ascend, shapes that do not fit, or tensors on different devices.

    Bytes moved, k coordinates: k · (index + value + 4 r_v), the row of V that each of them names, and U. Arithmetic:
    2 k r_v and 2 out r_u r_v.

    Source: as `project`.
    """
    _check(indices, values, shape, u, v, float64)
    kernels = backend(__name__, indices, values, u, v)
    core: Tensor = kernels.project_sparse(indices, values, shape, u, v, float64)
    return core
