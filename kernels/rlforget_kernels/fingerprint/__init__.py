"""`fingerprint`: 128 bits that say whether two tensors hold the same bits at the same coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.checks import require_indices
from rlforget_kernels.common.dispatch import backend, operator


def _fake_list(weights: list[Tensor], offsets: list[int] | None = None) -> Tensor:
    _check(weights, offsets)
    like = weights[0] if weights else torch.empty(0)
    return like.new_empty((len(weights), 2), dtype=torch.int64)


def _fake(weight: Tensor, offset: int = 0) -> Tensor:
    return _fake_list([weight], [offset])[0]


@operator(_fake)
def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """Fingerprint the stored bits of a tensor.

    The tensor's bytes in row-major order are read as words w_j of 32 bits, the first byte the lowest, zeros filling the
    last word. Formula, for lanes s = 0, 1, modulo 2**64: f_s = sum over j of T_s(j div 1024) * K_s(j mod 1024) * w_j,
    where K_s are 1024 fixed 32-bit numbers and T_s(t) is an odd 64-bit hash of t (`reference.py`). So an element
    narrower than a word adds its bits, shifted to where it lies in its word, times that word's factors.

    A sum knows no order: threads, shards and devices agree. It costs two multiplications a word, so memory sets the
    pace. A change within a tile of 1024 words leaves a lane as it was for at most one in 2³² choices of the factors,
    so both lanes stay with a chance of about 2⁻⁶⁴. It guards against mistakes, not against forgery, and says nothing
    of shape or dtype (zeros add nothing): keep those beside it.

    Args:
        weight: Any shape and strides, any dtype of `sparse_delta`.
        offset: Flat index of the first element in the whole tensor, >= 0: fingerprints of consecutive pieces of a
            tensor, each with its offset, add up (wrapping) to the fingerprint of the whole.

    Returns:
        int64 [2], each lane the bit pattern of an unsigned word.

    Raises:
        TypeError: if the dtype is not supported.
        ValueError: if `offset` is negative.

    Bytes moved: the tensor once.

    Source: multilinear hashing, J. L. Carter and M. N. Wegman, "Universal classes of hash functions" (1979), in two
    levels with factors from the MurmurHash3 finaliser.
    """
    return _run([weight], [offset])[0].clone()


@operator(_fake_list)
def foreach_fingerprint(weights: list[Tensor], offsets: list[int] | None = None) -> Tensor:
    """Do what `fingerprint` does for every tensor of a list, in one launch group or one parallel region.

    Args:
        weights: Tensors on one device, of any mix of shapes, dtypes and strides.
        offsets: One for each; None: all 0.

    Returns:
        int64 [len(weights), 2].

    Raises:
        TypeError: if a dtype is not supported.
        ValueError: if an offset is negative, or there are not as many as tensors; if devices differ.

    Bytes moved: see `fingerprint`.
    """
    return _run(weights, offsets)


def _run(weights: list[Tensor], offsets: list[int] | None) -> Tensor:
    _check(weights, offsets)
    if not weights:
        return torch.empty((0, 2), dtype=torch.int64)
    lanes: Tensor = backend(__name__, *weights).foreach_fingerprint(weights, offsets or [0] * len(weights))
    return lanes


def _check(weights: Sequence[Tensor], offsets: Sequence[int] | None) -> None:
    for weight in weights:
        bits_dtype(weight.dtype)
    if offsets is not None and len(offsets) != len(weights):
        raise ValueError(f"fingerprint: expected one offset a tensor, {len(weights)}; found {len(offsets)}")
    for offset in offsets or ():
        if offset < 0:
            raise ValueError(f"fingerprint: expected an offset >= 0; found {offset}")


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """Return the fingerprint of a tensor after `patch_` from the one before, without reading the tensor.

    Formula: f_s + sum over j of T_s * K_s at indices[j], times (after_bits[j] - before_bits[j]), modulo 2**64.

    Args:
        fingerprint: int64 [2], of the tensor before.
        indices: int32 or int64 [k], flat indices, each once. Fastest where they ascend.
        before_bits: [k], the integer dtype of the element's width: what stood there.
        after_bits: Like `before_bits`: what stands there now.

    Returns:
        int64 [2]. Swap the two bits to go back.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if sizes or devices do not fit together.

    Bytes moved: k times (an index, two elements); on a GPU, where it is plain torch, its temporaries
    too, of a million coordinates at a time.
    """
    require_indices("fingerprint_after_patch", indices, before_bits, "before_bits")
    require_indices("fingerprint_after_patch", indices, after_bits, "after_bits")
    if before_bits.dtype != after_bits.dtype:
        raise TypeError(
            f"fingerprint_after_patch: expected bits of one dtype; found {before_bits.dtype} and {after_bits.dtype}"
        )
    kernels = backend(__name__, fingerprint, indices, before_bits, after_bits)
    lanes: Tensor = kernels.fingerprint_after_patch(fingerprint, indices, before_bits, after_bits)
    return lanes
