"""`subtract_` with Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits64
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.gpu_math import random_word, round_nearest, round_stochastic, widen
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT

_BLOCK = 2048


def subtract_(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    """See `rlforget_kernels.subtract`."""
    bits = as_bits(weight)
    launch(
        subtract_kernel,
        triton.cdiv(bits.numel(), _BLOCK),
        bits,
        as_bits(u).view(torch.float32),
        bits.numel(),
        signed(mix64_int((seed or 0) % 2**64)),
        signed(offset),
        **_constexprs(weight.dtype, seed is not None),
    )
    write_back(weight, bits)


def _constexprs(dtype: torch.dtype, stochastic: bool) -> dict[str, int | bool]:
    layout = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    return {
        "EXPONENT": layout.exponent,
        "MANTISSA": layout.mantissa,
        "OVERFLOW": layout.overflow,
        "NAN_CODE": layout.nan,
        "STOCHASTIC": stochastic and dtype.itemsize < 4,
        "FLOAT64": dtype is torch.float64,
        "BLOCK": _BLOCK,
    }


@triton.jit
def subtract_kernel(
    bits_ptr,  # the weight's bits, integers of its width [numel]
    u_ptr,  # float32 [numel]
    numel,
    mixed_seed,
    first,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FLOAT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Subtract one tile."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if base + BLOCK <= numel:
        bits = tl.load(bits_ptr + base + offset)
        u = tl.load(u_ptr + base + offset)
        new = _difference(
            bits, u, mixed_seed, first + base, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC, FLOAT64, BLOCK
        )
        tl.store(bits_ptr + base + offset, new)
    else:
        inside = offset < numel - base
        bits = tl.load(bits_ptr + base + offset, mask=inside)
        u = tl.load(u_ptr + base + offset, mask=inside)
        new = _difference(
            bits, u, mixed_seed, first + base, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC, FLOAT64, BLOCK
        )
        tl.store(bits_ptr + base + offset, new, mask=inside)


@triton.jit
def _difference(
    bits,
    u,
    mixed_seed,
    first,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FLOAT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bits of the rounded difference [BLOCK]."""
    if FLOAT64:
        new = result_bits64(bits.to(tl.float64, bitcast=True) - u.to(tl.float64))
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        difference = widen((bits.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA) - u
        new = round_nearest(difference, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
        if STOCHASTIC:
            index = (first + tl.arange(0, BLOCK)).to(tl.uint64)
            noise = random_word(tl.cast(mixed_seed, tl.int64).to(tl.uint64), index) >> 32
            drawn = round_stochastic(difference, noise, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
            new = tl.where((drawn & (CODE >> 1)) >= OVERFLOW, new, drawn)
    return new.to(bits.dtype)


KERNELS = [
    KernelSpec(
        subtract_kernel,
        f"{str(dtype).removeprefix('torch.')} {'stochastic' if stochastic else 'nearest'}",
        {"bits_ptr": f"*i{8 * dtype.itemsize}", "u_ptr": "*fp32", "numel": "i64", "mixed_seed": "i64", "first": "i64"},
        _constexprs(dtype, stochastic),
        streams=True,
    )
    for stochastic, dtypes in (
        (False, (torch.float64, torch.float32, torch.bfloat16)),
        (True, (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)),
    )
    for dtype in dtypes
]
"""What is compiled ahead of time."""
