"""`delta_matmul`: (after − before) times a narrow matrix, for lists of pairs, without storing the difference."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.pair_checks import require_basis, require_equal_lengths, require_pair


def _check(before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool) -> None:
    require_equal_lengths("delta_matmul", before=before, after=after, right=right)
    for k, (old, new, factor) in enumerate(zip(before, after, right, strict=True)):
        require_pair("delta_matmul", k, old, new)
        require_basis("delta_matmul", f"right[{k}]", factor, old.shape[1], float64)


def _fake(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    _check(before, after, right, float64)
    dtype = torch.float64 if float64 else torch.float32
    products = [
        old.new_empty((old.shape[0], one.shape[1]), dtype=dtype) for old, one in zip(before, right, strict=True)
    ]
    return products, before[0].new_empty(len(before), dtype=torch.float64)


@operator(_fake)
def delta_matmul(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Multiply differences with narrow matrices: (after − before) · right for every pair.

    With transposed views of the pair (`.mT`) it is (after − before)ᵀ · right.

    The difference is taken in float32 (of float64 pairs in float64, then rounded to float32) and lives in registers and
    caches alone. Sums are taken in tiles of fixed sizes in a fixed order: every run gives the same bits, whatever the
    threads, the list and the memory layout. GPUs, CPUs with a matrix unit for bfloat16 and other CPUs each add in an
    order of their own, and CPUs in another where few elements of a tile changed: then they add up the rows of `right`
    that those name. The former two split their operands into bfloat16 terms (a CPU those of bfloat16 and float8
    pairs alone). Against exact arithmetic on the float32 difference δ, the error of the product is at most
    2**-16 · ‖δ‖ · ‖right‖ (Frobenius norms); typically 1e-8 of that product of norms on a CPU and 2e-7 on a GPU.

    Args:
        before: Matrices [out, in] of any strides: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or float64.
        after: Matrices of the shapes and dtypes of `before`.
        right: float32 matrices [in, r], r from 1 to 256; with `float64` also float64.
        float64: Whether to take differences, products and sums in float64.

    Returns:
        products: float32 (float64 with `float64`), [out, r] each.
        energy: float64 [n], the sums of squares of the differences.

    Raises:
        TypeError: for other dtypes.
        ValueError: for lists or shapes that do not fit, or tensors on different devices.

    Bytes moved, N coordinates of b bytes a pair: 2bN, the factor and the product.

    Source: the fused difference is this project's own; bfloat16 terms in place of float32, G. Henry, P. T. P. Tang,
    A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations" (2019),
    arXiv:1904.06376.
    """
    _check(before, after, right, float64)
    kernels = backend(__name__, *before, *after, *right)
    result: tuple[list[Tensor], Tensor] = kernels.delta_matmul(before, after, right, float64)
    return result
