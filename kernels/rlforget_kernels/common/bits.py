"""Tensors as the integers their bits spell: the view in which two stored values are equal or not."""

from __future__ import annotations

import torch
from torch import Tensor

BITS_DTYPE: dict[int, torch.dtype] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype that holds the bits of an element, by element size in bytes."""

_SUPPORTED = frozenset(
    {
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
    }
)


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the integer dtype of `dtype`'s width.

    Raises:
        TypeError: if `dtype` is not one the operators know.
    """
    if dtype not in _SUPPORTED:
        known = ", ".join(sorted(str(known).removeprefix("torch.") for known in _SUPPORTED))
        raise TypeError(f"dtype: expected one of {known}; found {str(dtype).removeprefix('torch.')}")
    return BITS_DTYPE[dtype.itemsize]


def as_bits(tensor: Tensor) -> Tensor:
    """Return the bits of `tensor` as a 1-D integer tensor in row-major order.

    Args:
        tensor: Any shape and strides, any supported dtype.

    Returns:
        A view where `tensor` is contiguous, else a copy. dtype: `bits_dtype(tensor.dtype)`.
    """
    bits = tensor.detach().view(bits_dtype(tensor.dtype)).contiguous()
    # Not view(-1): one element may keep a stride that forbids a view in another width.
    return bits.as_strided((bits.numel(),), (1,))


def write_back(tensor: Tensor, bits: Tensor) -> None:
    """Store `bits`, which `as_bits(tensor)` returned, into `tensor` where that was a copy and not a view."""
    if not tensor.is_contiguous():
        tensor.detach().view(bits.dtype).copy_(bits.view(tensor.shape))


def zero_extend(bits: Tensor) -> Tensor:
    """Return integer `bits` (any width) as int64, the bits above theirs zero."""
    width = 8 * bits.element_size()
    return bits.long() if width == 64 else bits.long() & ((1 << width) - 1)


def index_dtype(numel: int) -> torch.dtype:
    """Return the dtype of flat indices into a tensor of `numel` elements: int32 where that is enough."""
    return torch.int32 if numel < 2**31 else torch.int64
