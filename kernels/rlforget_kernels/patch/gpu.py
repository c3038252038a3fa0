"""`patch_` with Triton: one kernel counts mismatches, the next writes where the device reads that there are none."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.launch import KernelSpec, launch

_BLOCK = 2048


def patch_(weight: Tensor, indices: Tensor, expected_bits: Tensor, new_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.patch`."""
    bits = as_bits(weight)
    tiles = triton.cdiv(indices.numel(), _BLOCK)
    counts = torch.empty(tiles, dtype=torch.int32, device=bits.device)
    launch(mismatch_kernel, tiles, bits, bits.numel(), indices, expected_bits, indices.numel(), counts, BLOCK=_BLOCK)
    mismatches = counts.sum(dtype=torch.int64)
    launch(write_kernel, tiles, bits, indices, new_bits, indices.numel(), mismatches, BLOCK=_BLOCK)
    write_back(weight, bits)
    return mismatches


@triton.jit
def mismatch_kernel(bits_ptr, numel, indices_ptr, expected_ptr, length, counts_ptr, BLOCK: tl.constexpr):
    """Count, per tile of indices, those outside the tensor or at other bits than expected."""
    tile = tl.program_id(0).to(tl.int64)
    base = tile * BLOCK
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    listed = offset < length - base
    index = tl.load(indices_ptr + base + offset, mask=listed, other=0).to(tl.int64)
    expected = tl.load(expected_ptr + base + offset, mask=listed, other=0)
    inside = (index >= 0) & (index < numel)
    found = tl.load(bits_ptr + index, mask=listed & inside, other=0)
    wrong = listed & ((found != expected) | (inside == 0))
    tl.store(counts_ptr + tile, tl.sum(wrong.to(tl.int32), axis=0))


@triton.jit
def write_kernel(bits_ptr, indices_ptr, new_ptr, length, mismatches_ptr, BLOCK: tl.constexpr):
    """Write a tile of new bits, unless there was a mismatch anywhere."""
    if tl.load(mismatches_ptr) == 0:
        base = tl.program_id(0).to(tl.int64) * BLOCK
        offset = tl.arange(0, BLOCK)  # [BLOCK]
        listed = offset < length - base
        index = tl.load(indices_ptr + base + offset, mask=listed, other=0).to(tl.int64)
        new = tl.load(new_ptr + base + offset, mask=listed, other=0)
        tl.store(bits_ptr + index, new, mask=listed)


def _specs() -> list[KernelSpec]:
    specs = []
    for width in (8, 16, 32, 64):
        bits, label = f"*i{width}", f"{width} bit"
        mismatch = {
            "bits_ptr": bits,
            "numel": "i64",
            "indices_ptr": "*i32",
            "expected_ptr": bits,
            "length": "i64",
            "counts_ptr": "*i32",
        }
        write = {
            "bits_ptr": bits,
            "indices_ptr": "*i32",
            "new_ptr": bits,
            "length": "i64",
            "mismatches_ptr": "*i64",
        }
        specs.append(KernelSpec(mismatch_kernel, label, mismatch, {"BLOCK": _BLOCK}))
        specs.append(KernelSpec(write_kernel, label, write, {"BLOCK": _BLOCK}))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""
