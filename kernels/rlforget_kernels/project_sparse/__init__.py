"""`project_sparse`: what of a delta's changed coordinates lies in the span of two bases, without a dense tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_ascending, require_indices
from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.pair_checks import require_basis


def _check(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor) -> None:
    require_indices("project_sparse", indices, values, "values")
    if values.dtype is not torch.float32:
        raise TypeError(f"project_sparse: values: expected float32; found {values.dtype}")
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"project_sparse: shape: expected (out, in); found {tuple(shape)}")
    require_basis("project_sparse", "u", u, shape[0])
    require_basis("project_sparse", "v", v, shape[1])


def _fake(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor) -> Tensor:
    _check(indices, values, shape, u, v)
    return u.new_empty((u.shape[1], v.shape[1]))


@operator(_fake)
def project_sparse(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor) -> Tensor:
    """Express a sparse difference in a pair of bases: core = Uᵀ δ V, δ being `values` at `indices` and 0 elsewhere.

    Equal to the core of `project` but for the rounding of sums, which are taken in float32 in a fixed order.
    ‖values‖² and the squares of the core make the energies that `project.energy_share` takes.

    Args:
        indices: int32 or int64, 1-D, strictly ascending: row-major flat indices into a matrix of `shape`.
        values: float32, one for each index: after − before.
        shape: (out, in).
        u: float32 [out, r_u], r_u from 1 to 256.
        v: float32 [in, r_v], r_v from 1 to 256.

    Returns:
        float32 [r_u, r_v].

    Raises:
        TypeError: for other dtypes.
        IndexError: for an index beyond the matrix.
        ValueError: for indices that do not ascend, shapes that do not fit, or tensors on different devices.

    Bytes moved, k coordinates: k · (index + 4 + 4 r_v), the row of V that each of them names, and U. Arithmetic:
    2 k r_v and 2 out r_u r_v.
    """
    _check(indices, values, shape, u, v)
    kernels = backend(__name__, indices, values, u, v)
    require_ascending("project_sparse", indices, shape[0] * shape[1])
    core: Tensor = kernels.project_sparse(indices, values, shape, u, v)
    return core
