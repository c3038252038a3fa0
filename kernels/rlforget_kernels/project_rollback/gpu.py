"""The second half of `project_rollback_` with Triton: tiles of the correction on tensor cores, subtracted as they come.

First left = U · middle is stored, as the bfloat16 terms that `delta_matmul` too makes of float32; then each program
multiplies its rows of them with its rows of V, rounds and writes a tile of the weight.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import narrowed_bits, result_bits64
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.tables import TRITON_TYPE
from rlforget_kernels.delta_matmul.gpu import Layout, factor_terms, launch_groups, layout_of, padded_rank, two_terms

_STORED = 16 << 20  # bytes of either factor's terms that one launch takes at most, if it takes more than one piece
_LEFT_ROWS = 64
_DEPTH = 32
_WRITTEN = 64  # rows and columns of the tile that a program writes


class _Piece(NamedTuple):
    """A rectangle of the weight number `k`, small enough that its factors' terms may be stored."""

    k: int
    rows: slice
    columns: slice


def foreach_subtract_product_(
    weights: list[Tensor],
    u: list[Tensor],
    middle: list[Tensor],
    v: list[Tensor],
    seed: int | None,
    offsets: Sequence[int],
) -> None:
    """Write weight ← weight − U · middle · Vᵀ for every weight, rounded as `subtract_` does."""
    pieces = [
        _Piece(k, rows, columns)
        for k, (weight, right) in enumerate(zip(weights, v, strict=True))
        for rows in _cut(weight.shape[0], right.shape[1])
        for columns in _cut(weight.shape[1], right.shape[1])
    ]
    views = [weights[piece.k][piece.rows, piece.columns] for piece in pieces]
    kinds = [_kind(view, u[piece.k], v[piece.k]) for piece, view in zip(pieces, views, strict=True)]
    sizes = [4 * max(view.shape) * padded_rank(v[piece.k].shape[1]) for piece, view in zip(pieces, views, strict=True)]
    for members in launch_groups(kinds, sizes, _STORED):
        chosen = [pieces[member] for member in members]
        left = _left_terms([u[k][rows] for k, rows, _ in chosen], [middle[k] for k, *_ in chosen])
        right = [factor_terms(v[k][columns], _WRITTEN, False) for k, _, columns in chosen]
        starts = [offsets[k] + rows.start * weights[k].shape[1] + columns.start for k, rows, columns in chosen]
        pitches = [weights[k].shape[1] for k, *_ in chosen]
        _subtract([views[member] for member in members], left, right, starts, pitches, seed)


def _cut(size: int, rank: int) -> list[slice]:
    most = max(_STORED // (4 * padded_rank(rank) * _WRITTEN), 1) * _WRITTEN
    return [slice(start, min(start + most, size)) for start in range(0, size, most)]


def _kind(view: Tensor, u: Tensor, v: Tensor) -> Hashable:
    """What pieces of one launch have in common."""
    return view.shape, layout_of(view, view), view.dtype, u.shape[1], v.shape[1]


def _left_terms(u: list[Tensor], middle: list[Tensor]) -> Tensor:
    """The bfloat16 terms of u · middle for pairs of one shape: [pairs, 2, rows rounded up, rank rounded up]."""
    (rows, depth), rank, device = u[0].shape, middle[0].shape[1], u[0].device
    wide, tiles = padded_rank(rank), triton.cdiv(rows, _LEFT_ROWS)
    terms = torch.empty((len(u), 2, tiles * _LEFT_ROWS, wide), dtype=torch.bfloat16, device=device)
    held = [(factor.contiguous(), core.contiguous()) for factor, core in zip(u, middle, strict=True)]
    addresses = [[factor.data_ptr(), core.data_ptr()] for factor, core in held]
    table = torch.tensor(addresses, dtype=torch.int64).to(device, non_blocking=True)
    constants = _left_constexprs(rank)
    programs = len(u) * tiles * (wide // constants["PANEL"])
    launch(left_terms_kernel, programs, table, terms, rows, depth, rank, tiles, **constants)
    return terms


def _left_constexprs(rank: int) -> dict[str, Any]:
    wide = padded_rank(rank)
    interpreted = triton.knobs.runtime.interpret
    return {"RANK": wide, "PANEL": min(wide, 64), "ROWS": _LEFT_ROWS, "TENSOR_CORES": not interpreted}


def _subtract(
    views: list[Tensor],
    left: Tensor,
    right: list[Tensor],
    starts: list[int],
    pitches: list[int],
    seed: int | None,
) -> None:
    """Launch for pieces of one kind."""
    rows, columns = views[0].shape
    rank, left_step = left.shape[3], left.stride(1)
    across = triton.cdiv(columns, _WRITTEN)
    tiles = triton.cdiv(rows, _WRITTEN) * across
    addresses = [
        [view.data_ptr(), terms.data_ptr(), factor.data_ptr(), signed(start), pitch]
        for view, terms, factor, start, pitch in zip(views, left, right, starts, pitches, strict=True)
    ]
    layout = layout_of(views[0], views[0])
    launch(
        subtract_product_kernel,
        len(views) * tiles,
        torch.tensor(addresses, dtype=torch.int64).to(left.device, non_blocking=True),
        rows,
        columns,
        *layout.strides[:2],
        rank,
        left_step,
        right[0].stride(0),
        tiles,
        across,
        signed(mix64_int((seed or 0) % 2**64)),
        **_constexprs(views[0].dtype, rank, layout, seed is not None),
    )


def _constexprs(dtype: torch.dtype, rank: int, layout: Layout, stochastic: bool) -> dict[str, Any]:
    form = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    return {
        "TYPE": TRITON_TYPE[bits_dtype(dtype)],
        "EXPONENT": form.exponent,
        "MANTISSA": form.mantissa,
        "OVERFLOW": form.overflow,
        "NAN_CODE": form.nan,
        "STOCHASTIC": stochastic and dtype.itemsize < 4,
        "ALONG": layout.along,
        "ALIGNED": layout.aligned,
        "TENSOR_CORES": not triton.knobs.runtime.interpret,
        "DEPTH": min(rank, _DEPTH),
        "SIDE": _WRITTEN,
    }


@triton.jit
def left_terms_kernel(
    table_ptr,  # int64 [pairs, 2]: addresses of u [rows, depth] and middle [depth, rank], float32
    terms_ptr,  # bfloat16 [pairs, 2, tiles · ROWS, RANK]
    rows,
    depth,
    rank,
    tiles,
    RANK: tl.constexpr,
    PANEL: tl.constexpr,
    ROWS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    """One tile of u · middle, as terms, with zeros beyond rows and rank."""
    PANELS: tl.constexpr = RANK // PANEL
    tile = tl.program_id(0) // PANELS
    pair = (tile // tiles).to(tl.int64)
    u_ptr = tl.load(table_ptr + pair * 2).to(tl.pointer_type(tl.float32))
    middle_ptr = tl.load(table_ptr + pair * 2 + 1).to(tl.pointer_type(tl.float32))
    i = (tile % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    j = tl.program_id(0) % PANELS * PANEL + tl.arange(0, PANEL)[None, :]  # [1, PANEL]
    product = tl.zeros([ROWS, PANEL], tl.float32)
    for start in range(0, depth, 32):
        k = start + tl.arange(0, 32)  # [32]
        left = tl.load(u_ptr + i * depth + k[None, :], mask=(i < rows) & (k[None, :] < depth), other=0)
        right = tl.load(middle_ptr + k[:, None] * rank + j, mask=(k[:, None] < depth) & (j < rank), other=0)
        product = tl.dot(left, right, product, input_precision="tf32x3")
    high, low = two_terms(product, TENSOR_CORES)
    target = terms_ptr + (pair * 2 * tiles * ROWS + i) * RANK + j
    tl.store(target, high.to(tl.bfloat16))
    tl.store(target + tiles * ROWS * RANK, low.to(tl.bfloat16))


@triton.jit
def subtract_product_kernel(
    table_ptr,  # int64 [pieces, 5]: addresses of the weight and both factors' terms, first coordinate, row pitch
    rows,
    columns,
    row_stride,
    column_stride,
    rank,  # rounded up
    left_step,
    right_step,
    tiles,
    across,
    mixed_seed,
    TYPE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALONG: tl.constexpr,
    ALIGNED: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    DEPTH: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Subtract one tile of the product of the factors."""
    piece_ptr = table_ptr + tl.program_id(0) // tiles * 5
    weight_ptr = tl.load(piece_ptr).to(tl.pointer_type(TYPE))
    left_ptr = tl.multiple_of(tl.load(piece_ptr + 1).to(tl.pointer_type(tl.bfloat16)), 16)
    right_ptr = tl.multiple_of(tl.load(piece_ptr + 2).to(tl.pointer_type(tl.bfloat16)), 16)
    # The compiler takes `multiple_of` for what is computed, not for an argument; this it sees by itself.
    rank = rank // DEPTH * DEPTH
    left_step = left_step // DEPTH * DEPTH
    right_step = right_step // DEPTH * DEPTH
    LANES: tl.constexpr = 16 * 8 // TYPE.primitive_bitwidth
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        row_stride = row_stride // LANES * LANES
        column_stride = column_stride // LANES * LANES
        if ALONG == "rows":
            columns = columns // LANES * LANES
        else:
            rows = rows // LANES * LANES
    if ALONG == "rows":
        column_stride = 1
    elif ALONG == "columns":
        row_stride = 1
    tile = tl.program_id(0) % tiles
    i = (tile // across).to(tl.int64) * SIDE + tl.arange(0, SIDE)[:, None]  # [SIDE, 1]
    j = (tile % across).to(tl.int64) * SIDE + tl.arange(0, SIDE)[None, :]  # [1, SIDE]
    change = tl.zeros([SIDE, SIDE], tl.float32)
    for start in range(0, rank, DEPTH):
        k = start + tl.arange(0, DEPTH)  # [DEPTH]
        left_ptrs = left_ptr + i * rank + k[None, :]
        right_ptrs = right_ptr + j * rank + k[:, None]
        high, low = tl.load(left_ptrs), tl.load(left_ptrs + left_step)
        right_high, right_low = tl.load(right_ptrs), tl.load(right_ptrs + right_step)
        if not TENSOR_CORES:
            high, low = high.to(tl.float32), low.to(tl.float32)
            right_high, right_low = right_high.to(tl.float32), right_low.to(tl.float32)
        change = tl.dot(low, right_high, change)
        change = tl.dot(high, right_low, change)
        change = tl.dot(high, right_high, change)
    inside = (i < rows) & (j < columns)
    ptrs = weight_ptr + i * row_stride + j * column_stride
    bits = tl.load(ptrs, mask=inside, other=0)
    if bits.dtype == tl.int64:
        new = result_bits64(bits.to(tl.float64, bitcast=True) - change.to(tl.float64))
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        difference = widen((bits.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA) - change
        index = tl.load(piece_ptr + 3) + i * tl.load(piece_ptr + 4) + j
        new = narrowed_bits(difference, index, mixed_seed, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC)
    tl.store(ptrs, new.to(bits.dtype), mask=inside)


def _specs() -> list[KernelSpec]:
    left = {"table_ptr": "*i64", "terms_ptr": "*bf16"} | dict.fromkeys(("rows", "depth", "rank", "tiles"), "i64")
    numbers = ("rows", "columns", "row_stride", "column_stride", "rank", "left_step", "right_step", "tiles", "across")
    write = {"table_ptr": "*i64"} | dict.fromkeys((*numbers, "mixed_seed"), "i64")
    on_device = {"TENSOR_CORES": True}

    def spec(dtype: torch.dtype, rank: int, stochastic: bool, along: str = "rows") -> KernelSpec:
        rounding = "stochastic" if stochastic else "nearest"
        label = f"{str(dtype).removeprefix('torch.')} rank {rank} along {along} {rounding}"
        layout = Layout((0, 0, 0, 0), along, along != "neither")
        constants = _constexprs(dtype, rank, layout, stochastic) | on_device
        if along == "neither":
            return KernelSpec(subtract_product_kernel, label, write, constants)
        size = dtype.itemsize
        streams: dict[str, Any] = {"streams": True, "reads": size, "writes": size, "tile": "SIDE", "unrolled": _WRITTEN}
        return KernelSpec(subtract_product_kernel, label, write, constants, **streams)

    narrow = [dtype for dtype in FLOAT_FORMAT if dtype.itemsize < 4]
    return [
        *(KernelSpec(left_terms_kernel, f"rank {r}", left, _left_constexprs(r) | on_device) for r in (16, 64, 256)),
        *(spec(torch.bfloat16, rank, stochastic) for rank in (16, 64) for stochastic in (False, True)),
        *(spec(torch.bfloat16, 64, True, along) for along in ("columns", "neither")),
        *(spec(dtype, 64, False) for dtype in (torch.float64, torch.float32)),
        *(spec(dtype, 64, True) for dtype in narrow if dtype is not torch.bfloat16),
    ]


KERNELS = _specs()
"""What is compiled ahead of time."""
