"""`fisher_accumulate_` with Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.settings import Settings
from rlforget_kernels.common.tables import TRITON_TYPE, find_tile, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable

_SETTINGS = Settings("fisher_accumulate")  # by the size of a Fisher's element


def foreach_fisher_accumulate_(
    fishers: list[Tensor], gradients: list[Tensor], indices: Sequence[Tensor | None]
) -> None:
    """See `rlforget_kernels.fisher_accumulate`."""
    totals = [as_bits(fisher) for fisher in fishers]
    values = [
        as_bits(gradient).view(gradient.dtype) if gradient.element_size() >= 4 else as_bits(gradient)
        for gradient in gradients
    ]
    where = [total if index is None else index.contiguous() for total, index in zip(totals, indices, strict=True)]
    kinds = [(gradient.dtype, index is not None) for gradient, index in zip(gradients, indices, strict=True)]
    setting = _SETTINGS.on(totals[0])
    for table in tables((totals, values, where), setting.block, kinds=kinds):
        dtype, gathered = table.kind
        constexprs = table.constexprs | _constexprs(dtype, gathered, table.dtypes[2])
        arguments = (table.rows, table.owners)
        launch(fisher_accumulate_kernel, table.tiles, *arguments, **constexprs, **setting.launched)
    for fisher, total in zip(fishers, totals, strict=True):
        write_back(fisher, total)


def _constexprs(dtype: torch.dtype, gathered: bool, index_dtype: torch.dtype) -> dict[str, Any]:
    layout = FLOAT_FORMAT[torch.float32 if dtype is torch.float64 else dtype]
    held = dtype if dtype.itemsize >= 4 else (torch.int8, torch.int16)[dtype.itemsize - 1]
    return {
        "TYPE": TRITON_TYPE[held],
        "INDEX_TYPE": TRITON_TYPE[index_dtype],
        "EXPONENT": layout.exponent,
        "MANTISSA": layout.mantissa,
        "GATHERED": gathered,
    }


@triton.jit
def fisher_accumulate_kernel(
    rows_ptr,  # addresses of the Fisher's bits, of the gradient, and where GATHERED of the indices
    owners_ptr,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,  # of the gradient: float32, float64, or integer for the codes of a narrower float
    INDEX_TYPE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    GATHERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the squares to one tile of a Fisher."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    fisher_ptr = pointer_at(row_ptr, 0, tl.int32, ALIGNED) + base
    gradient_ptr = pointer_at(row_ptr, 1, TYPE, ALIGNED)
    indices_ptr = pointer_at(row_ptr, 2, INDEX_TYPE, ALIGNED) + base
    if not GATHERED:
        gradient_ptr += base
    if base + BLOCK <= numel:
        _add_tile(fisher_ptr, gradient_ptr, indices_ptr, None, EXPONENT, MANTISSA, GATHERED, BLOCK)
    else:
        inside = tl.arange(0, BLOCK) < numel - base
        _add_tile(fisher_ptr, gradient_ptr, indices_ptr, inside, EXPONENT, MANTISSA, GATHERED, BLOCK)


@triton.jit
def _add_tile(
    fisher_ptr,
    gradient_ptr,
    indices_ptr,
    inside,  # [BLOCK], or None for a full tile
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    GATHERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDTH: tl.constexpr = EXPONENT + MANTISSA + 1
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    place = offset
    if GATHERED:
        place = tl.load(indices_ptr + offset, mask=inside).to(tl.int64)
    value = tl.load(gradient_ptr + place, mask=inside)
    if WIDTH < 32:
        value = widen((value.to(tl.int32) & ((1 << WIDTH) - 1)).to(tl.uint32), EXPONENT, MANTISSA)
    else:
        value = value.to(tl.float32)
    total = tl.load(fisher_ptr + offset, mask=inside).to(tl.float32, bitcast=True)
    tl.store(fisher_ptr + offset, result_bits(total + value * value), mask=inside)


def _spec(dtype: torch.dtype, gathered: bool, index_dtype: torch.dtype = torch.int64) -> KernelSpec:
    indices = f"gathered at {str(index_dtype).removeprefix('torch.')}"
    return KernelSpec(
        fisher_accumulate_kernel,
        f"{str(dtype).removeprefix('torch.')} {indices if gathered else 'dense'}",
        {"rows_ptr": "*i64", "owners_ptr": "*i32"},
        table_constexprs(3) | _constexprs(dtype, gathered, index_dtype),
        streams=not gathered,
        reads=None if gathered else dtype.itemsize + 4,
        writes=4,
        settings=_SETTINGS,
        size=4,
    )


_GATHERED = ((torch.bfloat16, torch.int64), (torch.bfloat16, torch.int32), (torch.float32, torch.int32))

KERNELS = [_spec(dtype, False) for dtype in (*FLOAT_FORMAT, torch.float64)]
KERNELS += [_spec(dtype, True, index_dtype) for dtype, index_dtype in _GATHERED]
KERNELS += [_spec(torch.bfloat16, False).unaligned()]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    fisher = torch.zeros(elements, device=device)
    gradient = torch.ones(elements, dtype=torch.bfloat16, device=device)

    def call() -> Tensor:
        foreach_fisher_accumulate_([fisher], [gradient], [None])
        return fisher

    return call


TUNABLE = [Tunable(_SETTINGS, _trial, sizes=(4,), loads=(1, 2, 4))]
"""What `rlforget_kernels.tune` measures."""
