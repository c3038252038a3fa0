"""`delta_matmul` with Triton: tiles of the difference in registers, multiplied on tensor cores.

A float32 operand is the sum of two bfloat16 terms but for 2**-18 of it. Three of the four products of terms are taken:
of the fourth, and of what the terms leave, no more is lost than 3 · 2**-18 of the product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.tables import ALIGNMENT, TRITON_TYPE

TEMPORARY = 32 << 20
"""Bytes of the factors' terms that one launch takes at most, if it takes more than one pair."""


def delta_matmul(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.delta_matmul`."""
    dtype = torch.float64 if float64 else torch.float32
    products = [
        old.new_empty((old.shape[0], one.shape[1]), dtype=dtype) for old, one in zip(before, right, strict=True)
    ]
    energy = before[0].new_zeros(len(before), dtype=torch.float64)
    kinds = [_kind(old, new, factor.shape[1]) for old, new, factor in zip(before, after, right, strict=True)]
    sizes = [16 * factor.shape[0] * padded_rank(factor.shape[1]) for factor in right]
    for members in launch_groups(kinds, sizes, TEMPORARY):
        old, new, factors, targets = ([tensors[k] for k in members] for tensors in (before, after, right, products))
        energy[members] = _multiply(old, new, factors, targets, float64)
    return products, energy


def launch_groups(kinds: Sequence[Hashable], sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield positions of equal kind whose sizes add up to `limit` at most, or single ones."""
    groups: dict[Hashable, list[int]] = {}
    for position, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(position)
    for members in groups.values():
        start, total = 0, 0
        for end, member in enumerate(members):
            if end > start and total + sizes[member] > limit:
                yield members[start:end]
                start, total = end, 0
            total += sizes[member]
        yield members[start:]


def fold(values: Tensor) -> Tensor:
    """Add up `values` over their second dimension by halves: an order that other dimensions have no part in."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        first, second = values[:, :half].clone(), values[:, half:]
        first[:, : second.shape[1]] += second
        values = first
    return values.sum(1)  # of one, or of none


class Layout(NamedTuple):
    """How the matrices of a pair lie: strides, and whether tiles can be read 16 bytes at a time, along which side."""

    strides: tuple[int, int, int, int]
    along: str
    aligned: bool


def _kind(before: Tensor, after: Tensor, rank: int) -> tuple[Hashable, ...]:
    """What pairs of one launch have in common."""
    return before.shape, before.dtype, rank, layout_of(before, after)


def layout_of(before: Tensor, after: Tensor) -> Layout:
    """Describe matrices of one shape and dtype."""
    (b_row, b_column), (a_row, a_column), size = before.stride(), after.stride(), before.element_size()
    along = "rows" if b_column == a_column == 1 else "columns" if b_row == a_row == 1 else "neither"
    apart = (before.shape[1], b_row, a_row) if along == "rows" else (before.shape[0], b_column, a_column)
    starts = (before.data_ptr(), after.data_ptr(), *(steps * size for steps in apart))
    return Layout(
        (b_row, b_column, a_row, a_column),
        along,
        along != "neither" and all(start % ALIGNMENT == 0 for start in starts),
    )


def _multiply(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], products: list[Tensor], float64: bool
) -> Tensor:
    """Launch for pairs of one kind; return their energies."""
    (rows, columns), rank, device = before[0].shape, right[0].shape[1], before[0].device
    constants, warps, stages = _constexprs(before[0].dtype, rank, layout_of(before[0], after[0]), float64)
    tiles = triton.cdiv(rows, constants["BLOCK_M"])
    terms = [factor_terms(factor, constants["BLOCK_K"], float64) for factor in right]
    energy = torch.zeros(len(before), tiles, dtype=torch.float64, device=device)
    addresses = [
        [tensor.data_ptr() for tensor in tensors] for tensors in zip(before, after, terms, products, strict=True)
    ]
    table = torch.tensor(addresses, dtype=torch.int64).to(device, non_blocking=True)
    launch(
        delta_matmul_kernel,
        len(before) * tiles * (constants["RANK"] // constants["PANEL"]) if columns else 0,
        table,
        energy,
        rows,
        columns,
        *layout_of(before[0], after[0]).strides,
        rank,
        tiles,
        **constants,
        warps=warps,
        stages=stages,
    )
    if not columns:
        for product in products:
            product.zero_()
    return fold(energy)


def padded_rank(rank: int) -> int:
    """The rank that kernels are compiled for: what a tensor core takes at least, and a power of two."""
    return max(16, 1 << (rank - 1).bit_length())


def factor_terms(factor: Tensor, block: int, float64: bool) -> Tensor:
    """The factor as the kernel reads it, [terms, k, r] rounded up with zeros: two bfloat16 terms, or one float64."""
    depth, rank = factor.shape
    shape = (1 if float64 else 2, triton.cdiv(depth, block) * block, padded_rank(rank))
    terms = torch.zeros(shape, dtype=torch.float64 if float64 else torch.bfloat16, device=factor.device)
    terms[0, :depth, :rank] = factor
    if not float64:
        terms[1, :depth, :rank] = factor - terms[0, :depth, :rank].float()
    return terms


def _constexprs(dtype: torch.dtype, rank: int, layout: Layout, float64: bool) -> tuple[dict[str, Any], int, int]:
    """The kernel's constants, and how many warps and stages it takes."""
    form = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    wide = padded_rank(rank)
    # What a program's registers hold: less of what comes an element at a time, each with an address of its own.
    block = 16 if float64 or not layout.aligned else min(32, 128 // dtype.itemsize)
    constants = {
        "TYPE": TRITON_TYPE[bits_dtype(dtype)],
        "EXPONENT": form.exponent,
        "MANTISSA": form.mantissa,
        "ALONG": layout.along,
        "ALIGNED": layout.aligned,
        "FLOAT64": float64,
        "TENSOR_CORES": not triton.knobs.runtime.interpret,
        "RANK": wide,
        "BLOCK_M": 16 if float64 else 64,
        "BLOCK_K": block,
        "PANEL": min(wide, 128),
    }
    return constants, 4, 3 if float64 or wide > 64 else 4


@triton.jit
def delta_matmul_kernel(
    table_ptr,  # int64 [pairs, 4]: addresses of before, after, the terms of the factor, the product
    energy_ptr,  # float64 [pairs, tiles]
    rows,
    columns,
    b_row,
    b_column,
    a_row,
    a_column,
    rank,
    tiles,
    TYPE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    ALONG: tl.constexpr,
    ALIGNED: tl.constexpr,
    FLOAT64: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PANEL: tl.constexpr,
):
    """Multiply one tile of rows with a panel of the factor's columns, and add up the squares of its differences.

    The programs of a tile follow each other: what the first reads, the next finds in the second-level cache.
    """
    PANELS: tl.constexpr = RANK // PANEL
    NUMBER: tl.constexpr = tl.float64 if FLOAT64 else tl.float32
    TERM: tl.constexpr = tl.float64 if FLOAT64 else tl.bfloat16
    LANES: tl.constexpr = 16 * 8 // TYPE.primitive_bitwidth
    tile = tl.program_id(0) // PANELS
    pair_ptr = table_ptr + tile // tiles * 4
    old_ptr = tl.load(pair_ptr).to(tl.pointer_type(TYPE))
    new_ptr = tl.load(pair_ptr + 1).to(tl.pointer_type(TYPE))
    term_ptr = tl.multiple_of(tl.load(pair_ptr + 2).to(tl.pointer_type(TERM)), 16)
    product_ptr = tl.load(pair_ptr + 3).to(tl.pointer_type(NUMBER))
    if ALIGNED:
        # The compiler takes `multiple_of` for what is computed, not for an argument; this it sees by itself.
        old_ptr = tl.multiple_of(old_ptr, 16)
        new_ptr = tl.multiple_of(new_ptr, 16)
        b_row = b_row // LANES * LANES if ALONG == "rows" else 1
        a_row = a_row // LANES * LANES if ALONG == "rows" else 1
        columns = columns // LANES * LANES if ALONG == "rows" else columns
        b_column = b_column // LANES * LANES if ALONG == "columns" else 1
        a_column = a_column // LANES * LANES if ALONG == "columns" else 1
        rows = rows // LANES * LANES if ALONG == "columns" else rows
    elif ALONG == "rows":
        b_column = 1
        a_column = 1
    elif ALONG == "columns":
        b_row = 1
        a_row = 1

    first = (tile % tiles).to(tl.int64) * BLOCK_M
    i = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    j = tl.program_id(0) % PANELS * PANEL + tl.arange(0, PANEL)  # [PANEL]
    old_ptrs = old_ptr + first * b_row + i.to(tl.int64)[:, None] * b_row + k.to(tl.int64)[None, :] * b_column
    new_ptrs = new_ptr + first * a_row + i.to(tl.int64)[:, None] * a_row + k.to(tl.int64)[None, :] * a_column
    term_ptrs = term_ptr + k[:, None] * RANK + j[None, :]
    step = tl.cdiv(columns, BLOCK_K).to(tl.int64) * BLOCK_K * RANK  # from term to term
    inside = i[:, None] < rows - first
    squares = tl.zeros([BLOCK_M, BLOCK_K], NUMBER)
    product = tl.zeros([BLOCK_M, PANEL], NUMBER)
    whole = columns // BLOCK_K * BLOCK_K
    for _ in range(0, whole, BLOCK_K):
        old = tl.load(old_ptrs, mask=inside, other=0)
        new = tl.load(new_ptrs, mask=inside, other=0)
        delta = _difference(old, new, EXPONENT, MANTISSA, FLOAT64)
        squares += delta * delta
        product = _multiply_add(delta, term_ptrs, step, product, FLOAT64, TENSOR_CORES)
        old_ptrs += BLOCK_K * b_column
        new_ptrs += BLOCK_K * a_column
        term_ptrs += BLOCK_K * RANK
    if whole < columns:
        last = inside & (k[None, :] < columns - whole)
        old = tl.load(old_ptrs, mask=last, other=0)
        new = tl.load(new_ptrs, mask=last, other=0)
        delta = _difference(old, new, EXPONENT, MANTISSA, FLOAT64)
        squares += delta * delta
        product = _multiply_add(delta, term_ptrs, step, product, FLOAT64, TENSOR_CORES)
    if tl.program_id(0) % PANELS == 0:
        tl.store(energy_ptr + tile, tl.sum(tl.sum(squares.to(tl.float64), axis=1), axis=0))
    targets = product_ptr + (first + i)[:, None] * rank + j[None, :]
    tl.store(targets, product, mask=(i[:, None] < rows - first) & (j[None, :] < rank))


@triton.jit
def _difference(old, new, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr, FLOAT64: tl.constexpr):
    """after − before of two blocks of bits, in float32, or in float64."""
    if old.dtype == tl.int64:
        delta = new.to(tl.float64, bitcast=True) - old.to(tl.float64, bitcast=True)
        if not FLOAT64:
            delta = delta.to(tl.float32)
    else:
        before = _value(old, EXPONENT, MANTISSA)
        after = _value(new, EXPONENT, MANTISSA)
        if FLOAT64:
            delta = after.to(tl.float64) - before.to(tl.float64)
        else:
            delta = after - before
    return delta


@triton.jit
def _value(bits, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """The float32 values of a block of bits."""
    if bits.dtype == tl.int32:
        value = bits.to(tl.float32, bitcast=True)
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        value = widen((bits.to(tl.int32) & CODE).to(tl.uint32, bitcast=True), EXPONENT, MANTISSA)
    return value


@triton.jit
def _multiply_add(delta, term_ptrs, step, product, FLOAT64: tl.constexpr, TENSOR_CORES: tl.constexpr):
    """`product` plus `delta` times a block of the factor."""
    if FLOAT64:
        product = tl.dot(delta, tl.load(term_ptrs), product, out_dtype=tl.float64)
    else:
        high, low = two_terms(delta, TENSOR_CORES)
        factor_high = tl.load(term_ptrs)
        factor_low = tl.load(term_ptrs + step)
        if not TENSOR_CORES:
            factor_high = factor_high.to(tl.float32)
            factor_low = factor_low.to(tl.float32)
        product = tl.dot(low, factor_high, product)
        product = tl.dot(high, factor_low, product)
        product = tl.dot(high, factor_high, product)
    return product


@triton.jit
def two_terms(values, TENSOR_CORES: tl.constexpr):
    """Split float32 `values` into two bfloat16 terms; the interpreter, which cannot multiply these, keeps float32."""
    if TENSOR_CORES:
        high = values.to(tl.bfloat16)
        low = (values - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = _rounded(values)
        low = _rounded(values - high)
    return high, low


@triton.jit
def _rounded(values):
    """float32 `values` rounded to bfloat16, to nearest even."""
    bits = values.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(values == values, bits.to(tl.float32, bitcast=True), values)


def _step_bytes(dtype: torch.dtype, constants: Mapping[str, Any]) -> int:
    """Bytes of a block of before and of after, and of the block of the factor that they are multiplied with."""
    term = 8 if constants["FLOAT64"] else 2 * 2  # two bfloat16 terms
    return constants["BLOCK_K"] * (2 * constants["BLOCK_M"] * dtype.itemsize + constants["PANEL"] * term)


def _specs() -> list[KernelSpec]:
    def spec(dtype: torch.dtype, rank: int, along: str, float64: bool) -> KernelSpec:
        layout = Layout((0, 0, 0, 0), along, along != "neither")
        constants, warps, stages = _constexprs(dtype, rank, layout, float64)
        precision = "float64" if float64 else "float32"
        numbers = ("columns", "b_row", "b_column", "a_row", "a_column", "rank", "tiles", "rows")
        signature = {"table_ptr": "*i64", "energy_ptr": "*fp64"} | dict.fromkeys(numbers, "i64")
        label = f"{str(dtype).removeprefix('torch.')} rank {rank} along {along} in {precision}"
        constants["TENSOR_CORES"] = True
        copies = _step_bytes(dtype, constants) if layout.aligned else None
        return KernelSpec(delta_matmul_kernel, label, signature, constants, warps, stages, copies=copies)

    bfloat16 = torch.bfloat16
    return [
        *(spec(bfloat16, rank, "rows", False) for rank in (16, 64, 128, 256)),
        *(spec(bfloat16, rank, along, False) for rank in (64, 256) for along in ("columns", "neither")),
        *(spec(dtype, 64, "rows", False) for dtype in FLOAT_FORMAT if dtype is not bfloat16),
        *(spec(torch.float64, rank, "rows", double) for rank in (64, 256) for double in (False, True)),
        *(spec(bfloat16, rank, "rows", True) for rank in (16, 256)),
    ]


KERNELS = _specs()
"""What is compiled ahead of time."""
