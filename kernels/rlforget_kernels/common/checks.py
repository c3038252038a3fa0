"""Checks of operator arguments that several operators make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype

_CHECKED = 1 << 24  # indices that are compared at a time


def require_indices(op: str, indices: Tensor, selected: Tensor, selected_name: str) -> None:
    """Check that `indices` are 1-D int32 or int64, one for each element of the 1-D `selected`.

    Raises:
        TypeError: for another dtype.
        ValueError: for other shapes.
    """
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: indices: expected int32 or int64; found {indices.dtype}")
    if indices.dim() != 1 or selected.shape != indices.shape:
        raise ValueError(
            f"{op}: expected 1-D indices and {selected_name} of equal length; "
            f"found shapes {tuple(indices.shape)} and {tuple(selected.shape)}"
        )


def require_same_layout(op: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Check that two lists are of one length, and the tensors of each pair of one shape and one supported dtype.

    Raises:
        TypeError: if a dtype is not supported.
        ValueError: if lengths, shapes or dtypes differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{op}: expected as many tensors before as after; found {len(before)} and {len(after)}")
    for old, new in zip(before, after, strict=True):
        bits_dtype(old.dtype)
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"{op}: expected two tensors of one shape and dtype; found {tuple(old.shape)} {old.dtype} "
                f"and {tuple(new.shape)} {new.dtype}. Compare tensors of the same layout."
            )


def require_in_range(op: str, indices: Tensor, numel: int) -> None:
    """Check that 0 <= indices < numel.

    Raises:
        IndexError: naming an index that is not. On a device this waits for the device.
    """
    require_all_in_range(op, [indices], [numel])


def require_all_in_range(op: str, indices: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
    """Check that 0 <= index < size for all of some indices, each with a size; None has none.

    Raises:
        IndexError: naming an index that is not. On a device this waits for the device, once.
    """
    checked = [(one, size) for one, size in zip(indices, sizes, strict=True) if one is not None and one.numel()]
    if not checked:
        return
    ends = torch.stack([end.long() for one, _ in checked for end in torch.aminmax(one)]).view(-1, 2).tolist()
    for (low, high), (_, size) in zip(ends, checked, strict=True):
        if low < 0 or high >= size:
            found = low if low < 0 else high
            raise IndexError(f"{op}: expected indices in [0, {size}); found {found}. They belong to another tensor.")


def require_ascending(op: str, indices: Tensor, numel: int) -> None:
    """Check that `indices` ascend strictly and that 0 <= indices < numel.

    Raises:
        IndexError: naming an index out of range.
        ValueError: if they do not ascend. On a device this waits for the device.
    """
    if indices.numel() == 0:
        return
    # In parts that overlap by one, so that what is compared stays small.
    for start in range(0, indices.numel() - 1, _CHECKED):
        part = indices[start : start + _CHECKED + 1]
        if not bool((part[1:] > part[:-1]).all()):
            raise ValueError(f"{op}: expected ascending indices, each once; found others. Sort them with their values.")
    require_in_range(op, indices[[0, -1]], numel)
