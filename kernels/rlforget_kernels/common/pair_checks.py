"""Checks of the lists of matrices that the operators on after − before take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype

LARGEST_RANK = 256


def require_equal_lengths(op: str, **lists: Sequence[object]) -> None:
    """Check that lists have one length, at least 1.

    Raises:
        ValueError: if not.
    """
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{op}: expected lists of one length, at least 1; found {found}")


def require_pair(op: str, k: int, before: Tensor, after: Tensor, second: str = "after") -> None:
    """Check that `before` and `after`, number `k` of their lists, are float matrices of one shape and dtype.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape.
    """
    bits_dtype(before.dtype)
    if not before.dtype.is_floating_point or before.dtype != after.dtype:
        raise TypeError(
            f"{op}: before[{k}], {second}[{k}]: expected one float dtype; found {before.dtype} and {after.dtype}"
        )
    if before.dim() != 2 or before.shape != after.shape:
        raise ValueError(
            f"{op}: before[{k}], {second}[{k}]: expected matrices of one shape; found {tuple(before.shape)} and "
            f"{tuple(after.shape)}. Give other tensors as a view of two dimensions."
        )


def require_basis(op: str, name: str, basis: Tensor, rows: int, float64: bool = False) -> None:
    """Check that `basis` is a matrix of `rows` rows and 1 to `LARGEST_RANK` columns: float32, or with `float64` both.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape.
    """
    if basis.dtype is not torch.float32 and not (float64 and basis.dtype is torch.float64):
        known = "float32 or float64" if float64 else "float32"
        raise TypeError(f"{op}: {name}: expected {known}; found {basis.dtype}")
    if basis.dim() != 2 or basis.shape[0] != rows or not 1 <= basis.shape[1] <= LARGEST_RANK:
        raise ValueError(
            f"{op}: {name}: expected shape ({rows}, r) with r from 1 to {LARGEST_RANK}; found {tuple(basis.shape)}"
        )
