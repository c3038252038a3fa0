"""Checks of operator arguments that several operators make."""

from __future__ import annotations

import torch
from torch import Tensor


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


def require_in_range(op: str, indices: Tensor, numel: int) -> None:
    """Check that 0 <= indices < numel.

    Raises:
        IndexError: naming an index that is not. On a device this waits for the device.
    """
    if indices.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(indices))
    if low < 0 or high >= numel:
        raise IndexError(
            f"{op}: expected indices in [0, {numel}); found {low if low < 0 else high}. They belong to another tensor."
        )
