"""`project_sparse` with Triton: rows of δV as products of tensor cores, then Uᵀ times them as in `project`.

The changes of a tile of rows, some at a time, are a small matrix with one entry a column, times the rows of V that they
name: a dense product in place of atomic additions, which would have no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.delta_matmul.gpu import padded_rank
from rlforget_kernels.project.gpu import left_products, row_pieces

_ROWS = 16
_TAKEN = 32  # changes multiplied at a time


def project_sparse(indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor) -> Tensor:
    """See `rlforget_kernels.project_sparse`."""
    (rows, columns), rank = shape, v.shape[1]
    tiles = torch.arange(triton.cdiv(rows, _ROWS) + 1, device=indices.device)
    starts = torch.searchsorted(indices, (tiles * (_ROWS * columns)).clamp(max=rows * columns).to(indices.dtype))
    right, changes, where = v.contiguous(), values.contiguous(), indices.contiguous()
    core = v.new_zeros((u.shape[1], rank), dtype=torch.float64)
    for piece in row_pieces(rows, 4 * rank):
        product = v.new_empty((piece.stop - piece.start, rank))
        launch(
            sparse_product_kernel,
            triton.cdiv(product.shape[0], _ROWS),
            where,
            changes,
            starts[piece.start // _ROWS :],
            right,
            product,
            piece.start,
            product.shape[0],
            columns,
            rank,
            **_constexprs(rank),
            warps=_warps(rank),
        )
        core += left_products([u[piece]], [product])[0]
    return core.to(torch.float32)


def _warps(rank: int) -> int:
    return 8 if rank > 128 else 4


def _constexprs(rank: int) -> dict[str, Any]:
    return {"ROWS": _ROWS, "TAKEN": _TAKEN, "RANK": padded_rank(rank)}


@triton.jit
def sparse_product_kernel(
    indices_ptr,
    values_ptr,
    starts_ptr,  # int64: where the changes of each tile of rows start, and where the last tile's end
    right_ptr,  # float32 [columns, rank]
    product_ptr,  # float32 [rows, rank]
    first,
    rows,
    columns,
    rank,
    ROWS: tl.constexpr,
    TAKEN: tl.constexpr,
    RANK: tl.constexpr,
):
    """Multiply one tile of rows, the first tile being at row `first` of the matrix."""
    tile = tl.program_id(0).to(tl.int64)
    start = tl.load(starts_ptr + tile)
    stop = tl.load(starts_ptr + tile + 1)
    i = tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    j = tl.arange(0, RANK)[None, :]  # [1, RANK]
    base = (first + tile * ROWS) * columns
    product = tl.zeros([ROWS, RANK], tl.float32)
    for taken in range(0, stop - start, TAKEN):
        k = start + taken + tl.arange(0, TAKEN)  # [TAKEN]
        place = tl.load(indices_ptr + k, mask=k < stop, other=0).to(tl.int64) - base
        value = tl.load(values_ptr + k, mask=k < stop, other=0)
        row, column = place // columns, place % columns
        # A column of an index that is not there is negative; its value is 0.
        named = (k < stop)[:, None] & (j < rank)
        right = tl.load(right_ptr + column[:, None] * rank + j, mask=named, other=0)  # [TAKEN, RANK]
        left = tl.where(row[None, :] == i, value[None, :], 0.0)  # [ROWS, TAKEN]
        product = tl.dot(left, right, product, input_precision="tf32x3")
    target = tile * ROWS + i
    tl.store(product_ptr + target * rank + j, product, mask=(target < rows) & (j < rank))


def _specs() -> list[KernelSpec]:
    numbers = dict.fromkeys(("first", "rows", "columns", "rank"), "i64")
    pointers = {"values_ptr": "*fp32", "starts_ptr": "*i64", "right_ptr": "*fp32", "product_ptr": "*fp32"}
    return [
        KernelSpec(
            sparse_product_kernel,
            f"int{width} rank {rank}",
            {"indices_ptr": f"*i{width}", **pointers, **numbers},
            _constexprs(rank),
            _warps(rank),
        )
        for width in (32, 64)
        for rank in (16, 64, 256)
    ]


KERNELS = _specs()
"""What is compiled ahead of time."""
