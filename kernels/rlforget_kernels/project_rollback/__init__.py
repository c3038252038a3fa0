"""`project_rollback_`: take back, in place, the part of a change that lies in the span of two bases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.hashing import consecutive
from rlforget_kernels.common.pair_checks import require_basis, require_equal_lengths, require_pair
from rlforget_kernels.project import project


def _check(
    op: str, weights: list[Tensor], before: list[Tensor], u: list[Tensor], v: list[Tensor], shrinkage: list[Tensor]
) -> None:
    for k, (weight, old, left, right, kept) in enumerate(zip(weights, before, u, v, shrinkage, strict=True)):
        require_pair(op, k, old, weight, "weight")
        require_basis(op, f"u[{k}]", left, weight.shape[0])
        require_basis(op, f"v[{k}]", right, weight.shape[1])
        if kept.dtype is not torch.float32:
            raise TypeError(f"{op}: shrinkage[{k}]: expected float32; found {kept.dtype}")
        if kept.shape != (left.shape[1], right.shape[1]):
            expected = (left.shape[1], right.shape[1])
            raise ValueError(f"{op}: shrinkage[{k}]: expected shape {expected}; found {tuple(kept.shape)}")


def _check_written(weight: Tensor, shrinkage: Tensor, write_u: Tensor | None, write_v: Tensor | None) -> None:
    for name, basis, side in (("write_u", write_u, 0), ("write_v", write_v, 1)):
        if basis is None:
            continue
        require_basis("project_rollback_", name, basis, weight.shape[side])
        if basis.shape[1] != shrinkage.shape[side]:
            expected, found = (weight.shape[side], shrinkage.shape[side]), tuple(basis.shape)
            raise ValueError(f"project_rollback_: {name}: expected shape {expected}; found {found}")


def _run(
    op: str,
    weights: list[Tensor],
    before: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    shrinkage: list[Tensor],
    seed: int | None,
    offsets: Sequence[int],
    write_u: list[Tensor],
    write_v: list[Tensor],
) -> None:
    _check(op, weights, before, u, v, shrinkage)
    if not weights:
        return
    kernels = backend(__name__, *weights, *before, *u, *v, *shrinkage, *write_u, *write_v)
    cores, _ = project(before, weights, u, v)
    middle = [core * kept for core, kept in zip(cores, shrinkage, strict=True)]
    finite = torch.stack([torch.isfinite(core).all() for core in middle]).tolist()
    if not all(finite):
        k = finite.index(False)
        raise ValueError(
            f"{op}: weight[{k}]: expected a finite change and finite bases; found a projection with NaN or infinity, "
            "which would spread to every coordinate. Repair the tensors first."
        )
    kernels.foreach_subtract_product_(weights, write_u, middle, write_v, seed, offsets)


def _fake(
    weight: Tensor,
    before: Tensor,
    u: Tensor,
    v: Tensor,
    shrinkage: Tensor,
    seed: int | None = None,
    offset: int = 0,
    write_u: Tensor | None = None,
    write_v: Tensor | None = None,
) -> None:
    _check("project_rollback_", [weight], [before], [u], [v], [shrinkage])
    _check_written(weight, shrinkage, write_u, write_v)


@operator(_fake, mutates=("weight",))
def project_rollback_(
    weight: Tensor,
    before: Tensor,
    u: Tensor,
    v: Tensor,
    shrinkage: Tensor,
    seed: int | None = None,
    offset: int = 0,
    write_u: Tensor | None = None,
    write_v: Tensor | None = None,
) -> None:
    """Write weight ← weight − U (S ∘ Uᵀ (weight − before) V) Vᵀ, in place.

    With orthonormal U and V, an entry 1 of S undoes the change along its pair of directions, 0 keeps it. With `write_u`
    and `write_v`, these stand outside the brackets: bases that are orthonormal in another metric, as those of a
    generalised eigenproblem are, read a change with other vectors than they write it with.

    The correction is computed in float32 with sums in a fixed order: on one kind of device (see `delta_matmul`) the
    bits that are written are a function of the arguments alone, whatever the threads and the memory layout. (CPUs with
    a matrix unit for bfloat16 split both sides of the last product into two bfloat16 terms, for bfloat16 and float8
    weights.) The difference of weight and correction is taken in float32 (float64 for float64 weights) and rounded
    once, to nearest even or with `seed` stochastically, as by `subtract_`. The error of the correction is at most
    2**-14 · ‖U‖² · ‖δ‖ · ‖V‖² · max|S| (Frobenius norms; a square is the product of the two bases' norms where they
    differ), typically below 1e-8 of that (1e-6 with two terms and bases of few columns).

    Args:
        weight: Matrix [out, in] of any strides: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or float64.
            Written in place.
        before: Matrix of the shape and dtype of `weight`.
        u: float32 [out, r_u], r_u from 1 to 256.
        v: float32 [in, r_v], r_v from 1 to 256.
        shrinkage: S, float32 [r_u, r_v].
        seed: None, or any int64: see `subtract_`, whose random bits these are.
        offset: Flat index of the first coordinate: of a shard in its tensor, or of the tensor in the model.
        write_u: float32 [out, r_u]; None: U.
        write_v: float32 [in, r_v]; None: V.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, tensors on different devices, or a projection that is not finite. In
            every case nothing is written.

    Bytes moved, N coordinates of b bytes: 2bN to project, 2bN to write, and the bases.

    Source: this project's own rule, θ ← θ − U (S ∘ Uᵀ δ V) Vᵀ with δ = θ − θ_before: a rollback in the directions of
    two bases in place of coordinates. Stochastic rounding as in Gupta et al. 2015, arXiv:1502.02551.
    """
    _check_written(weight, shrinkage, write_u, write_v)
    write = [u if write_u is None else write_u], [v if write_v is None else write_v]
    _run("project_rollback_", [weight], [before], [u], [v], [shrinkage], seed, [offset], *write)


def _following(op: str, weights: list[Tensor], offsets: list[int] | None, *lists: list[Tensor]) -> list[int]:
    """What stands for no offsets."""
    offsets = consecutive(weights) if offsets is None else offsets
    if weights or any(lists):
        names = ("before", "u", "v", "shrinkage")
        require_equal_lengths(op, weights=weights, **dict(zip(names, lists, strict=True)), offsets=offsets)
    return offsets


def _fake_list(
    weights: list[Tensor],
    before: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    shrinkage: list[Tensor],
    seed: int | None = None,
    offsets: list[int] | None = None,
) -> None:
    _following("foreach_project_rollback_", weights, offsets, before, u, v, shrinkage)
    _check("foreach_project_rollback_", weights, before, u, v, shrinkage)


@operator(_fake_list, mutates=("weights",))
def foreach_project_rollback_(
    weights: list[Tensor],
    before: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    shrinkage: list[Tensor],
    seed: int | None = None,
    offsets: list[int] | None = None,
) -> None:
    """Do what `project_rollback_` does for every weight of a list, writing with the bases that it reads with.

    Args:
        weights: Matrices on one device, of any mix of shapes, dtypes and strides. Written in place.
        before: One a weight, and so the following, as for `project_rollback_`.
        u: Bases of the rows.
        v: Bases of the columns.
        shrinkage: What to take back.
        seed: For all.
        offsets: One a weight. None: each weight follows on the one before it in the list, the first at 0.

    Raises:
        TypeError: as `project_rollback_`.
        ValueError: as `project_rollback_`, and for lists of different lengths. In every case nothing is written.

    Bytes moved: see `project_rollback_`.
    """
    op = "foreach_project_rollback_"
    offsets = _following(op, weights, offsets, before, u, v, shrinkage)
    _run(op, weights, before, u, v, shrinkage, seed, offsets, u, v)
