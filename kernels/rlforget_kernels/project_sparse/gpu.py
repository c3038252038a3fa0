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

from rlforget_kernels.common.checks import require_ascending
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.delta_matmul.gpu import padded_rank
from rlforget_kernels.project.gpu import left_products, row_pieces

_ROWS = 16


def project_sparse(
    indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False
) -> Tensor:
    """See `rlforget_kernels.project_sparse`."""
    (rows, columns), rank = shape, v.shape[1]
    require_ascending("project_sparse", indices, rows * columns)
    tiles = torch.arange(triton.cdiv(rows, _ROWS) + 1, device=indices.device)
    starts = torch.searchsorted(indices, (tiles * (_ROWS * columns)).clamp(max=rows * columns).to(indices.dtype))
    right, changes, where = v.contiguous(), values.contiguous(), indices.contiguous()
    core = v.new_zeros((u.shape[1], rank), dtype=torch.float64)
    number = torch.float64 if float64 else torch.float32
    for piece in row_pieces(rows, number.itemsize * rank):
        product = v.new_empty((piece.stop - piece.start, rank), dtype=number)
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
            **_constexprs(rank, float64),
            warps=_warps(rank),
        )
        core += left_products([u[piece]], [product])[0]
    return core.to(number)


def _warps(rank: int) -> int:
    return 8 if rank > 128 else 4


def _constexprs(rank: int, float64: bool) -> dict[str, Any]:
    taken = 16 if float64 else 32  # changes multiplied at a time
    return {"FLOAT64": float64, "ROWS": _ROWS, "TAKEN": taken, "RANK": padded_rank(rank)}


@triton.jit
def sparse_product_kernel(
    indices_ptr,
    values_ptr,  # float32, or where FLOAT64 float64 too
    starts_ptr,  # int64: where the changes of each tile of rows start, and where the last tile's end
    right_ptr,  # float32 [columns, rank]
    product_ptr,  # float32 (float64 where FLOAT64) [rows, rank]
    first,
    rows,
    columns,
    rank,
    FLOAT64: tl.constexpr,
    ROWS: tl.constexpr,
    TAKEN: tl.constexpr,
    RANK: tl.constexpr,
):
    """Multiply one tile of rows, the first tile being at row `first` of the matrix."""
    NUMBER: tl.constexpr = tl.float64 if FLOAT64 else tl.float32
    tile = tl.program_id(0).to(tl.int64)
    start = tl.load(starts_ptr + tile)
    stop = tl.load(starts_ptr + tile + 1)
    i = tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    j = tl.arange(0, RANK)[None, :]  # [1, RANK]
    base = (first + tile * ROWS) * columns
    product = tl.zeros([ROWS, RANK], NUMBER)
    for taken in range(0, stop - start, TAKEN):
        k = start + taken + tl.arange(0, TAKEN)  # [TAKEN]
        place = tl.load(indices_ptr + k, mask=k < stop, other=0).to(tl.int64) - base
        value = tl.load(values_ptr + k, mask=k < stop, other=0).to(NUMBER)
        row, column = place // columns, place % columns
        # A column of an index that is not there is negative; its value is 0.
        named = (k < stop)[:, None] & (j < rank)
        right = tl.load(right_ptr + column[:, None] * rank + j, mask=named, other=0).to(NUMBER)  # [TAKEN, RANK]
        left = tl.where(row[None, :] == i, value[None, :], tl.zeros([1, TAKEN], NUMBER))  # [ROWS, TAKEN]
        if FLOAT64:
            product = tl.dot(left, right, product, out_dtype=tl.float64)
        else:
            product = tl.dot(left, right, product, input_precision="tf32x3")
    target = tile * ROWS + i
    tl.store(product_ptr + target * rank + j, product, mask=(target < rows) & (j < rank))


def _specs() -> list[KernelSpec]:
    numbers = dict.fromkeys(("first", "rows", "columns", "rank"), "i64")
    kinds = [(32, "fp32", False), (64, "fp32", False), (32, "fp32", True), (64, "fp64", True)]
    specs = []
    for width, values, float64 in kinds:
        product = "*fp64" if float64 else "*fp32"
        pointers = {"values_ptr": f"*{values}", "starts_ptr": "*i64", "right_ptr": "*fp32", "product_ptr": product}
        signature = {"indices_ptr": f"*i{width}", **pointers, **numbers}
        for rank in (16, 64, 256):
            label = f"int{width} {values} rank {rank} in {'float64' if float64 else 'float32'}"
            constants = _constexprs(rank, float64)
            specs.append(KernelSpec(sparse_product_kernel, label, signature, constants, _warps(rank)))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""
