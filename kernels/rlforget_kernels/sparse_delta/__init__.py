"""`sparse_delta`: which coordinates changed, and their bits before and after."""

from __future__ import annotations

from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.common.dispatch import backend, operator, size_of_data


def _fake(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    changed = size_of_data()
    bits = bits_dtype(before.dtype)
    return (
        before.new_empty(changed, dtype=index_dtype(before.numel())),
        before.new_empty(changed, dtype=bits),
        before.new_empty(changed, dtype=bits),
    )


@operator(_fake)
def sparse_delta(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the coordinates whose stored bits differ, with the bits on both sides.

    Formula: { i : bits(before)[i] != bits(after)[i] }. So -0.0 differs from 0.0, and a NaN equals only the NaN of the
    same bits.

    Args:
        before: Any shape and strides; float32, bfloat16, float16, float8_e4m3fn, float8_e5m2, float64, int8 to int64,
            uint8 or bool.
        after: Shape, dtype and device of `before`.

    Returns:
        Three 1-D tensors, one element a changed coordinate:
        indices (row-major flat, ascending; int32 where `before` has fewer than 2**31 elements, else int64),
        the bits before and the bits after (the integer dtype of the element's width).

    Raises:
        ValueError: if shapes, dtypes or devices differ.
        TypeError: if the dtype is not in the list above.

    Bytes moved: both inputs once, and per changed coordinate one index and two elements; on a GPU also one bit an
    element, written and read.
    """
    if before.shape != after.shape or before.dtype != after.dtype:
        raise ValueError(
            f"sparse_delta: expected two tensors of one shape and dtype; found {tuple(before.shape)} {before.dtype} "
            f"and {tuple(after.shape)} {after.dtype}. Compare tensors of the same layout."
        )
    found: tuple[Tensor, Tensor, Tensor] = backend(__name__, before, after).sparse_delta(before, after)
    return found
