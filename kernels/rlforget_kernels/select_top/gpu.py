"""`select_top`'s passes with Triton. Counting by integer atomics: their order does not change a sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.gpu_math import INFINITY, MAGNITUDE, NAN
from rlforget_kernels.common.launch import KernelSpec, launch

_BLOCK = 2048


def score_histogram(score: Tensor, prefix: int = -1) -> Tensor:
    """See `rlforget_kernels.select_top`."""
    bits = as_bits(score)
    histogram = torch.zeros(1 << (15 if prefix < 0 else 16), dtype=torch.int64, device=bits.device)
    launch(
        histogram_kernel,
        triton.cdiv(bits.numel(), _BLOCK),
        bits,
        histogram,
        bits.numel(),
        prefix,
        HIGH=prefix < 0,
        BLOCK=_BLOCK,
    )
    return histogram


def indices_from(score: Tensor, bits: int, ties: int) -> tuple[Tensor, int]:
    """See `rlforget_kernels.select_top`."""
    codes = as_bits(score)
    tiles = triton.cdiv(codes.numel(), _BLOCK)
    counts = torch.zeros((2, tiles + 1), dtype=torch.int64, device=codes.device)
    launch(count_kernel, tiles, codes, counts[0, 1:], counts[1, 1:], codes.numel(), bits, BLOCK=_BLOCK)
    # Before tile p there are above[p] codes above the threshold and equal[p] that equal it.
    above, equal = counts.cumsum(1)
    taken = int(equal[-1].clamp(max=ties))
    indices = torch.empty(int(above[-1]) + taken, dtype=torch.int64, device=codes.device)
    launch(write_kernel, tiles, codes, above, equal, indices, codes.numel(), bits, taken, BLOCK=_BLOCK)
    return indices, taken


@triton.jit
def _load_ordered(bits_ptr, base, inside, BLOCK: tl.constexpr):
    """A tile of bits [BLOCK], −0.0 as 0, NaN as the one NaN, and what is negative above everything."""
    bits = tl.load(bits_ptr + base + tl.arange(0, BLOCK), mask=inside)
    magnitude = bits & MAGNITUDE
    negative = tl.where(magnitude == 0, 0, 0x7FFF0000)
    return tl.where(magnitude > INFINITY, NAN, tl.where(bits < 0, negative, bits))


@triton.jit
def histogram_kernel(bits_ptr, histogram_ptr, numel, prefix, HIGH: tl.constexpr, BLOCK: tl.constexpr):
    """Count one tile by the high 15 bits, or by the low 16 bits where the high ones are `prefix`."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    one = tl.full([BLOCK], 1, tl.int64)
    if base + BLOCK <= numel:
        bits = _load_ordered(bits_ptr, base, None, BLOCK)
        if HIGH:
            tl.atomic_add(histogram_ptr + (bits >> 16), one, sem="relaxed")
        else:
            tl.atomic_add(histogram_ptr + (bits & 0xFFFF), one, mask=(bits >> 16) == prefix, sem="relaxed")
    else:
        inside = tl.arange(0, BLOCK) < numel - base
        bits = tl.where(inside, _load_ordered(bits_ptr, base, inside, BLOCK), 0)
        if HIGH:
            tl.atomic_add(histogram_ptr + (bits >> 16), one, mask=inside, sem="relaxed")
        else:
            tl.atomic_add(histogram_ptr + (bits & 0xFFFF), one, mask=inside & ((bits >> 16) == prefix), sem="relaxed")


@triton.jit
def count_kernel(bits_ptr, above_ptr, equal_ptr, numel, least, BLOCK: tl.constexpr):
    """Count the codes of one tile above `least`, and those equal to it."""
    tile = tl.program_id(0).to(tl.int64)
    base = tile * BLOCK
    if base + BLOCK <= numel:
        bits = _load_ordered(bits_ptr, base, None, BLOCK)
    else:
        inside = tl.arange(0, BLOCK) < numel - base
        bits = tl.where(inside, _load_ordered(bits_ptr, base, inside, BLOCK), -1)
    tl.store(above_ptr + tile, tl.sum((bits > least).to(tl.int32), axis=0).to(tl.int64))
    tl.store(equal_ptr + tile, tl.sum((bits == least).to(tl.int32), axis=0).to(tl.int64))


@triton.jit
def write_kernel(bits_ptr, above_ptr, equal_ptr, indices_ptr, numel, least, ties, BLOCK: tl.constexpr):
    """Write the positions of one tile's codes above `least`, and of those equal to it while `ties` lasts."""
    tile = tl.program_id(0).to(tl.int64)
    base = tile * BLOCK
    if base + BLOCK <= numel:
        bits = _load_ordered(bits_ptr, base, None, BLOCK)
    else:
        inside = tl.arange(0, BLOCK) < numel - base
        bits = tl.where(inside, _load_ordered(bits_ptr, base, inside, BLOCK), -1)
    above = (bits > least).to(tl.int32)  # [BLOCK]
    equal = (bits == least).to(tl.int32)
    above_before = tl.load(above_ptr + tile) + tl.cumsum(above, axis=0) - above
    equal_before = tl.load(equal_ptr + tile) + tl.cumsum(equal, axis=0) - equal
    chosen = (above != 0) | ((equal != 0) & (equal_before < ties))
    place = above_before + tl.minimum(equal_before, ties)
    tl.store(indices_ptr + place, base + tl.arange(0, BLOCK), mask=chosen)


def _specs() -> list[KernelSpec]:
    histogram = {"bits_ptr": "*i32", "histogram_ptr": "*i64", "numel": "i64", "prefix": "i32"}
    count = {"bits_ptr": "*i32", "above_ptr": "*i64", "equal_ptr": "*i64", "numel": "i64", "least": "i32"}
    write = {
        "bits_ptr": "*i32",
        "above_ptr": "*i64",
        "equal_ptr": "*i64",
        "indices_ptr": "*i64",
        "numel": "i64",
        "least": "i32",
        "ties": "i64",
    }
    return [
        KernelSpec(histogram_kernel, "high", histogram, {"HIGH": True, "BLOCK": _BLOCK}, streams=True),
        KernelSpec(histogram_kernel, "low", histogram, {"HIGH": False, "BLOCK": _BLOCK}, streams=True),
        KernelSpec(count_kernel, "above and equal", count, {"BLOCK": _BLOCK}, streams=True),
        KernelSpec(write_kernel, "above and equal", write, {"BLOCK": _BLOCK}),
    ]


KERNELS = _specs()
"""What is compiled ahead of time."""
