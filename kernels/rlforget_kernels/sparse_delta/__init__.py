"""`sparse_delta`: which coordinates changed, and their bits before and after."""

from __future__ import annotations

from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.common.checks import require_same_layout
from rlforget_kernels.common.dispatch import backend, operator, size_of_data


def _fake_list(before: list[Tensor], after: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    require_same_layout("sparse_delta", before, after)
    changed = [size_of_data() for _ in before]
    indices = [old.new_empty(count, dtype=index_dtype(old.numel())) for old, count in zip(before, changed, strict=True)]
    bits_before, bits_after = (
        [old.new_empty(count, dtype=bits_dtype(old.dtype)) for old, count in zip(before, changed, strict=True)]
        for _ in range(2)
    )
    return indices, bits_before, bits_after


def _fake(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (indices,), (bits_before,), (bits_after,) = _fake_list([before], [after])
    return indices, bits_before, bits_after


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

    Source: this project's own definition of a change. That both sides are kept, and no difference, is as in
    arXiv:2602.03839.
    """
    (indices,), (bits_before,), (bits_after,) = _run([before], [after])
    return indices, bits_before, bits_after


@operator(_fake_list)
def foreach_sparse_delta(before: list[Tensor], after: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Do what `sparse_delta` does for every pair of two lists, in one launch group or one parallel region.

    On a GPU a group has 400 million elements at most, or one tensor: it keeps a bit of each.

    Args:
        before: Tensors on one device, of any mix of shapes, dtypes and strides.
        after: As many, each of the shape and dtype of its counterpart.

    Returns:
        Lists of the indices, the bits before and the bits after: to the bit what `sparse_delta` returns of each pair.

    Raises:
        ValueError: if lengths, shapes, dtypes or devices differ.
        TypeError: if a dtype is not supported.

    Bytes moved: see `sparse_delta`.
    """
    return _run(before, after)


def _run(before: list[Tensor], after: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    require_same_layout("sparse_delta", before, after)
    if not before:
        return [], [], []
    found: tuple[list[Tensor], list[Tensor], list[Tensor]]
    found = backend(__name__, *before, *after).foreach_sparse_delta(before, after)
    return found
