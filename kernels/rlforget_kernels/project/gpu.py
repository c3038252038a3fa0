"""`project` with Triton: `delta_matmul` with V, then Uᵀ times its product, which is small and still in cache."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.delta_matmul.gpu import delta_matmul, fold, launch_groups, padded_rank

_STRIP = 1024  # rows that one program sums over
STORED = 32 << 20
"""Bytes of the products with V that are stored at a time."""


def project(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.project`."""
    size = 8 if float64 else 4
    pieces = [
        (k, rows)
        for k, (old, right) in enumerate(zip(before, v, strict=True))
        for rows in row_pieces(old.shape[0], size * right.shape[1])
    ]
    kinds = [
        (rows.stop - rows.start, before[k].shape[1], before[k].dtype, u[k].shape[1], v[k].shape[1])
        for k, rows in pieces
    ]
    sizes = [size * kind[0] * kind[-1] for kind in kinds]
    wide = [
        left.new_zeros((left.shape[1], right.shape[1]), dtype=torch.float64) for left, right in zip(u, v, strict=True)
    ]
    energy = before[0].new_zeros((len(before), 2), dtype=torch.float64)
    for members in launch_groups(kinds, sizes, STORED):
        chosen = [pieces[member] for member in members]
        old, new = ([tensors[k][rows] for k, rows in chosen] for tensors in (before, after))
        products, squares = delta_matmul(old, new, [v[k] for k, _ in chosen], float64)
        cores = left_products([u[k][rows] for k, rows in chosen], products)
        for (k, _), core, square in zip(chosen, cores, squares, strict=True):
            wide[k] += core
            energy[k, 0] += square
    for core, pair in zip(wide, energy, strict=True):
        pair[1] = core.square().sum()
    return wide if float64 else [core.to(torch.float32) for core in wide], energy


def row_pieces(rows: int, size: int) -> list[slice]:
    """Cut a matrix into whole strips, so that with `size` bytes a row no piece is larger than `STORED`."""
    most = max(STORED // (size * _STRIP), 1) * _STRIP
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def left_products(left: list[Tensor], products: list[Tensor]) -> Tensor:
    """leftᵀ · product for pairs of one shape: float64 [pairs, r_u, r_v]."""
    (rows, left_rank), right_rank, dtype = left[0].shape, products[0].shape[1], products[0].dtype
    constants = _constexprs(left_rank, right_rank, dtype is torch.float64)
    strips = triton.cdiv(rows, _STRIP)
    tiles = triton.cdiv(left_rank, constants["TILE_U"]), triton.cdiv(right_rank, constants["TILE_V"])
    parts = products[0].new_empty((len(left), strips, left_rank, right_rank))
    held = [factor.contiguous() for factor in left]
    addresses = [[factor.data_ptr(), product.data_ptr()] for factor, product in zip(held, products, strict=True)]
    table = torch.tensor(addresses, dtype=torch.int64).to(parts.device, non_blocking=True)
    programs = len(left) * strips * tiles[0] * tiles[1]
    launch(left_product_kernel, programs, table, parts, rows, left_rank, right_rank, strips, *tiles, **constants)
    return fold(parts.double())


def _constexprs(left_rank: int, right_rank: int, float64: bool) -> dict[str, Any]:
    return {
        "FLOAT64": float64,
        "STRIP": _STRIP,
        "BLOCK": 16 if float64 else 32,
        "TILE_U": min(padded_rank(left_rank), 64),
        "TILE_V": min(padded_rank(right_rank), 64),
    }


@triton.jit
def left_product_kernel(
    table_ptr,  # int64 [pairs, 2]: addresses of left [rows, left_rank] (float32) and product [rows, right_rank]
    parts_ptr,  # like product [pairs, strips, left_rank, right_rank]
    rows,
    left_rank,
    right_rank,
    strips,
    tiles_u,
    tiles_v,
    FLOAT64: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_U: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """One tile of leftᵀ · product, summed over one strip of rows."""
    NUMBER: tl.constexpr = tl.float64 if FLOAT64 else tl.float32
    part = tl.program_id(0) // (tiles_u * tiles_v)
    tile = tl.program_id(0) % (tiles_u * tiles_v)
    pair_ptr = table_ptr + part // strips * 2
    left_ptr = tl.load(pair_ptr).to(tl.pointer_type(tl.float32))
    product_ptr = tl.load(pair_ptr + 1).to(tl.pointer_type(NUMBER))
    a = tile // tiles_v * TILE_U + tl.arange(0, TILE_U)  # [TILE_U]
    b = tile % tiles_v * TILE_V + tl.arange(0, TILE_V)  # [TILE_V]
    first = (part % strips).to(tl.int64) * STRIP
    total = tl.zeros([TILE_U, TILE_V], NUMBER)
    for start in range(0, tl.minimum(STRIP, rows - first), BLOCK):
        i = first + start + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
        left = tl.load(left_ptr + i * left_rank + a[None, :], mask=(i < rows) & (a[None, :] < left_rank), other=0)
        inside = (i < rows) & (b[None, :] < right_rank)
        product = tl.load(product_ptr + i * right_rank + b[None, :], mask=inside, other=0)
        if FLOAT64:
            total = tl.dot(tl.trans(left.to(tl.float64)), product, total, out_dtype=tl.float64)
        else:
            total = tl.dot(tl.trans(left), product, total, input_precision="tf32x3")
    targets = (part.to(tl.int64) * left_rank + a[:, None]) * right_rank + b[None, :]
    tl.store(parts_ptr + targets, total, mask=(a[:, None] < left_rank) & (b[None, :] < right_rank))


def _specs() -> list[KernelSpec]:
    numbers = ("rows", "left_rank", "right_rank", "strips", "tiles_u", "tiles_v")
    specs = []
    for rank in (16, 64):
        for float64 in (False, True):
            pointer = "*fp64" if float64 else "*fp32"
            signature = {"table_ptr": "*i64", "parts_ptr": pointer} | dict.fromkeys(numbers, "i64")
            label = f"rank {rank} in {'float64' if float64 else 'float32'}"
            specs.append(KernelSpec(left_product_kernel, label, signature, _constexprs(rank, rank, float64)))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""
