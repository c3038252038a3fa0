"""Tensors on the device in the memory layout that they have on the host."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> Tensor:
    """Copy the whole storage, so that odd addresses and gaps stay (`Tensor.to` would close them)."""
    held = torch.empty(0, dtype=tensor.dtype, device="cuda")
    storage = torch.empty(tensor.untyped_storage().nbytes(), dtype=torch.uint8, device="cuda")
    host = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    storage.copy_(host)
    return held.set_(storage.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
