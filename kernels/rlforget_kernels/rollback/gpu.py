"""`rollback_` with Triton."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits64
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.gpu_math import round_nearest, widen
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT

_BLOCK = 2048


def rollback_(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
) -> None:
    """See `rlforget_kernels.rollback`."""
    bits = as_bits(weight)
    launch(
        rollback_kernel,
        triton.cdiv(before.numel(), _BLOCK),
        bits,
        as_bits(before),
        bits if indices is None else indices.contiguous(),
        bits if score is None else as_bits(score).view(torch.float32),
        before.numel(),
        float(threshold),
        _float64_bits(strength),
        **_constexprs(weight.dtype, strength == 1.0, indices is not None, score is not None),
    )
    write_back(weight, bits)


def _float64_bits(value: float) -> int:
    """`value` as int64 bits: Triton would pass a float as float32."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _constexprs(dtype: torch.dtype, whole: bool, gathered: bool, scored: bool) -> dict[str, int | bool]:
    layout = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    return {
        "EXPONENT": layout.exponent,
        "MANTISSA": layout.mantissa,
        "OVERFLOW": layout.overflow,
        "NAN_CODE": layout.nan,
        "WHOLE": whole,
        "FLOAT64": dtype is torch.float64,
        "GATHERED": gathered,
        "SCORED": scored,
        "BLOCK": _BLOCK,
    }


@triton.jit
def rollback_kernel(
    bits_ptr,  # the weight's bits, integers of its width
    before_ptr,  # [numel]
    indices_ptr,  # int32 or int64 [numel], read where GATHERED
    score_ptr,  # float32 [numel], read where SCORED
    numel,
    threshold,
    strength_bits,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    WHOLE: tl.constexpr,
    FLOAT64: tl.constexpr,
    GATHERED: tl.constexpr,
    SCORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put one tile of coordinates back."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if base + BLOCK <= numel:
        index, now, old, chosen = _load_tile(
            bits_ptr, before_ptr, indices_ptr, score_ptr, base, None, threshold, GATHERED, SCORED, BLOCK
        )
    else:
        inside = offset < numel - base
        index, now, old, chosen = _load_tile(
            bits_ptr, before_ptr, indices_ptr, score_ptr, base, inside, threshold, GATHERED, SCORED, BLOCK
        )
        chosen = chosen & inside
    if WHOLE:
        new = old
    else:
        new = _between(now, old, strength_bits, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, FLOAT64)
    tl.store(bits_ptr + index, new, mask=chosen)


@triton.jit
def _load_tile(
    bits_ptr,
    before_ptr,
    indices_ptr,
    score_ptr,
    base,
    inside,  # [BLOCK], or None for a full tile
    threshold,
    GATHERED: tl.constexpr,
    SCORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Flat indices, the bits there now and before, and which of them are to be written: each [BLOCK]."""
    place = base + tl.arange(0, BLOCK)
    index = place
    if GATHERED:
        index = tl.load(indices_ptr + place, mask=inside).to(tl.int64)
    now = tl.load(bits_ptr + index, mask=inside)
    old = tl.load(before_ptr + place, mask=inside)
    chosen = now != old
    if SCORED:
        chosen = chosen & (tl.load(score_ptr + place, mask=inside) >= threshold)
    return index, now, old, chosen


@triton.jit
def _between(
    now,
    old,
    strength_bits,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    FLOAT64: tl.constexpr,
):
    """The bits of now − strength · (now − old)."""
    strength = tl.cast(strength_bits, tl.int64).to(tl.float64, bitcast=True)
    if FLOAT64:
        value = now.to(tl.float64, bitcast=True)
        new = result_bits64(value - strength * (value - old.to(tl.float64, bitcast=True)))
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        value = widen((now.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA)
        goal = widen((old.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA)
        moved = value - strength.to(tl.float32) * (value - goal)
        new = round_nearest(moved, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE)
    return new.to(now.dtype)


def _spec(dtype: torch.dtype, whole: bool, gathered: bool) -> KernelSpec:
    """A dense compilation takes a score, one that gathers takes none."""
    bits = f"*i{8 * dtype.itemsize}"
    signature = {
        "bits_ptr": bits,
        "before_ptr": bits,
        "indices_ptr": "*i64" if gathered else bits,
        "score_ptr": bits if gathered else "*fp32",
        "numel": "i64",
        "threshold": "fp32",
        "strength_bits": "i64",
    }
    label = f"{str(dtype).removeprefix('torch.')} {'whole' if whole else 'part'} "
    label += "gathered" if gathered else "dense scored"
    constexprs = _constexprs(dtype, whole, gathered, not gathered)
    return KernelSpec(rollback_kernel, label, signature, constexprs, streams=not gathered)


_PART = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn)
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)

KERNELS = [_spec(dtype, whole, False) for whole, dtypes in ((False, _PART), (True, _WHOLE)) for dtype in dtypes]
# Gathering costs alike, whole or in part: the widest, the usual and the narrowest elements stand for the others.
KERNELS += [_spec(torch.float64, False, True), _spec(torch.bfloat16, False, True), _spec(torch.int8, True, True)]
"""What is compiled ahead of time."""
