"""`patch_`: write new bits at coordinates that hold the expected ones, all or nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.dispatch import backend, operator


def _fake(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    _check([weight], [indices], [expected_bits], [new_bits])
    return weight.new_empty((), dtype=torch.int64)


def _fake_list(
    weights: list[Tensor], indices: list[Tensor], expected_bits: list[Tensor], new_bits: list[Tensor]
) -> Tensor:
    _check(weights, indices, expected_bits, new_bits)
    return torch.empty(len(weights), dtype=torch.int64, device=weights[0].device if weights else "cpu")


@operator(_fake, mutates=("weight",))
def patch_(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    """Replace the bits of `weight` at `indices`, if every one of them holds what is expected.

    On a CPU those at the front are written before those at the back are checked, and put back where one is wrong.

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

    Source: this project's own.
    """
    mismatches = _run([weight], [indices], [expected_bits], [new_bits])
    return mismatches.sum()


@operator(_fake_list, mutates=("weights",))
def foreach_patch_(
    weights: list[Tensor], indices: list[Tensor], expected_bits: list[Tensor], new_bits: list[Tensor]
) -> Tensor:
    """Do what `patch_` does for lists of tensors, if every coordinate of every tensor holds what is expected.

    Formula: m_t as in `patch_` for each weight t; where all m_t = 0, everything is written, else nothing anywhere.

    Args:
        weights: Tensors on one device, of any mix of shapes, dtypes and strides, apart in memory. Written in place.
        indices: For each weight int32 or int64 [k_t], row-major flat, strictly ascending.
        expected_bits: For each weight [k_t], the integer dtype of its element's width.
        new_bits: Like `expected_bits`.

    Returns:
        m, int64 [n], on the device of the weights. Reading it is the only synchronisation.

    Raises:
        ValueError: if lengths, sizes or devices do not fit together.
        TypeError: if a dtype does not.

    Bytes moved: see `patch_`.
    """
    return _run(weights, indices, expected_bits, new_bits)


def _run(weights: list[Tensor], indices: list[Tensor], expected_bits: list[Tensor], new_bits: list[Tensor]) -> Tensor:
    _check(weights, indices, expected_bits, new_bits)
    if not weights:
        return torch.zeros(0, dtype=torch.int64)
    lists = [[tensor.contiguous() for tensor in tensors] for tensors in (indices, expected_bits, new_bits)]
    every = (tensor for tensors in lists for tensor in tensors)
    mismatches: Tensor = backend(__name__, *weights, *every).foreach_patch_(weights, *lists)
    return mismatches


def _check(weights: list[Tensor], indices: list[Tensor], expected_bits: list[Tensor], new_bits: list[Tensor]) -> None:
    lengths = {len(tensors) for tensors in (weights, indices, expected_bits, new_bits)}
    if len(lengths) != 1:
        raise ValueError(f"patch_: expected lists of one length; found {sorted(lengths)}")
    for patch in zip(weights, indices, expected_bits, new_bits, strict=True):
        _check_one(*patch)


def _check_one(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> None:
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
