"""`fingerprint`: 128 bits that say whether two tensors hold the same bits at the same coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_indices
from rlforget_kernels.common.dispatch import backend, operator


def _fake(weight: Tensor, offset: int = 0) -> Tensor:
    return weight.new_empty(2, dtype=torch.int64)


@operator(_fake)
def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """Fingerprint the stored bits of a tensor.

    Formula, for lanes s = 0, 1, modulo 2**64: f_s = sum over i of T_s(i div 1024) * K_s(i mod 1024) * bits_i, where
    K_s are 1024 fixed 32-bit words, T_s(t) is an odd 64-bit hash of t (`reference.py`), and bits_i is the stored
    element i, zero-extended. An element of 64 bits counts as two of 32, the lower half first.

    A sum knows no order: threads, shards and devices agree. It costs two multiplications an element, so memory sets
    the pace. A change within a tile of 1024 elements leaves a lane as it was for at most one in 2**32 choices of the
    words, so both lanes stay with a chance of about 2**-64. It guards against mistakes, not against forgery, and says
    nothing of shape or dtype (zeros add nothing): keep those beside it.

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
    levels with words from the MurmurHash3 finaliser.
    """
    if offset < 0:
        raise ValueError(f"fingerprint: expected an offset >= 0; found {offset}")
    lanes: Tensor = backend(__name__, weight).fingerprint(weight, offset)
    return lanes


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

    Bytes moved: k times (an index, two elements); on a GPU, where it is plain torch, its temporaries too.
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
