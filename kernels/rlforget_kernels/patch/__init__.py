"""`patch_`: write new bits at coordinates that hold the expected ones, all or nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.dispatch import backend, operator


def _fake(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    return weight.new_empty((), dtype=torch.int64)


@operator(_fake, mutates=("weight",))
def patch_(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    """Replace the bits of `weight` at `indices`, if every one of them holds what is expected.

    Formula: m = #{ j : indices[j] outside the tensor, or bits(weight)[indices[j]] != expected_bits[j] };
    where m = 0, bits(weight)[indices[j]] = new_bits[j] for every j, else nothing is written.

    Args:
        weight: Any shape and strides, any dtype of `sparse_delta`. Written in place.
        indices: int32 or int64 [k], row-major flat, strictly ascending. The order is the caller's duty: with an index
            twice, which of the two is written is not defined.
        expected_bits: [k], the integer dtype of the element's width.
        new_bits: Like `expected_bits`.

    Returns:
        m, a 0-d int64 on the device of `weight`. Reading it is the only synchronisation.

    Raises:
        ValueError: if sizes or devices do not fit together.
        TypeError: if a dtype does not.

    Bytes moved: k times (an index twice, three elements).
    """
    bits = bits_dtype(weight.dtype)
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"patch_: expected indices in int32 or int64; found {indices.dtype}")
    if expected_bits.dtype != bits or new_bits.dtype != bits:
        raise TypeError(
            f"patch_: expected bits in {bits}, as wide as {weight.dtype}; found {expected_bits.dtype} and "
            f"{new_bits.dtype}"
        )
    if indices.dim() != 1 or not indices.shape == expected_bits.shape == new_bits.shape:
        raise ValueError(
            f"patch_: expected 1-D indices and bits of one length; found shapes {tuple(indices.shape)}, "
            f"{tuple(expected_bits.shape)} and {tuple(new_bits.shape)}"
        )
    patch = (indices.contiguous(), expected_bits.contiguous(), new_bits.contiguous())
    mismatches: Tensor = backend(__name__, weight, *patch).patch_(weight, *patch)
    return mismatches
