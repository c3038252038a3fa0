"""`fisher_accumulate_` with Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT

_BLOCK = 2048


def fisher_accumulate_(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
    """See `rlforget_kernels.fisher_accumulate`."""
    total = as_bits(fisher)
    launch(
        fisher_accumulate_kernel,
        triton.cdiv(total.numel(), _BLOCK),
        total,
        as_bits(gradient).view(gradient.dtype) if gradient.element_size() >= 4 else as_bits(gradient),
        total if indices is None else indices.contiguous(),
        total.numel(),
        **_constexprs(gradient.dtype, indices is not None),
    )
    write_back(fisher, total)


def _constexprs(dtype: torch.dtype, gathered: bool) -> dict[str, int | bool]:
    layout = FLOAT_FORMAT[torch.float32 if dtype is torch.float64 else dtype]
    return {"EXPONENT": layout.exponent, "MANTISSA": layout.mantissa, "GATHERED": gathered, "BLOCK": _BLOCK}


@triton.jit
def fisher_accumulate_kernel(
    fisher_ptr,  # the bits, int32 [numel]
    gradient_ptr,  # float32, float64, or the codes of a narrower float
    indices_ptr,  # int32 or int64 [numel], read where GATHERED
    numel,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    GATHERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the squares to one tile of the Fisher."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    if base + BLOCK <= numel:
        _add_tile(fisher_ptr, gradient_ptr, indices_ptr, base, None, EXPONENT, MANTISSA, GATHERED, BLOCK)
    else:
        inside = tl.arange(0, BLOCK) < numel - base
        _add_tile(fisher_ptr, gradient_ptr, indices_ptr, base, inside, EXPONENT, MANTISSA, GATHERED, BLOCK)


@triton.jit
def _add_tile(
    fisher_ptr,
    gradient_ptr,
    indices_ptr,
    base,
    inside,  # [BLOCK], or None for a full tile
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    GATHERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDTH: tl.constexpr = EXPONENT + MANTISSA + 1
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if GATHERED:
        index = tl.load(indices_ptr + base + offset, mask=inside).to(tl.int64)
        value = tl.load(gradient_ptr + index, mask=inside)
    else:
        value = tl.load(gradient_ptr + base + offset, mask=inside)
    if WIDTH < 32:
        value = widen((value.to(tl.int32) & ((1 << WIDTH) - 1)).to(tl.uint32), EXPONENT, MANTISSA)
    else:
        value = value.to(tl.float32)
    total = tl.load(fisher_ptr + base + offset, mask=inside).to(tl.float32, bitcast=True)
    tl.store(fisher_ptr + base + offset, result_bits(total + value * value), mask=inside)


_GRADIENTS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*i16",
    torch.float16: "*i16",
    torch.float8_e4m3fn: "*i8",
    torch.float8_e5m2: "*i8",
}

KERNELS = [
    KernelSpec(
        fisher_accumulate_kernel,
        f"{str(dtype).removeprefix('torch.')} {'gathered' if gathered else 'dense'}",
        {"fisher_ptr": "*i32", "gradient_ptr": pointer, "indices_ptr": "*i32", "numel": "i64"},
        _constexprs(dtype, gathered),
        streams=not gathered,
    )
    for dtype, pointer in _GRADIENTS.items()
    for gathered in ((False, True) if dtype in (torch.float32, torch.bfloat16) else (False,))
]
"""What is compiled ahead of time."""
