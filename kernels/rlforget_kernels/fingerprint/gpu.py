"""`fingerprint` with Triton: a program adds up tiles place by place, each times its tile word.

The element words come last: they are the same for every tile, and so is the sum they multiply.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.gpu_math import random_word
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.fingerprint import reference
from rlforget_kernels.fingerprint.reference import TILE, element_words, tile_seed

_TILES = 16  # a program; enough to make its end, where it multiplies by the element words and reduces, cheap
_WARPS = {1: 2, 2: 4, 4: 8}  # a tile is one 16-byte load a thread


def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    bits = as_bits(weight)
    if bits.element_size() == 8:
        bits, offset = bits.view(torch.int32), 2 * offset
    first = offset // TILE
    last = triton.cdiv(offset + bits.numel(), TILE)
    programs = triton.cdiv(last - first, _TILES) if bits.numel() else 0
    words = [element_words(lane, bits.device).to(torch.int32) for lane in range(2)]
    sums = torch.empty((2, programs), dtype=torch.int64, device=bits.device)
    constants = {"SEED_0": tile_seed(0), "SEED_1": tile_seed(1), "TILE": TILE, "TILES": _TILES}
    place, warps = offset % TILE, _WARPS[bits.element_size()]
    launch(sum_kernel, programs, bits, bits.numel(), first, place, *words, sums[0], sums[1], **constants, warps=warps)
    return sums.sum(dim=1)


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`. In plain torch: a patch is small beside its tensor."""
    return reference.fingerprint_after_patch(fingerprint, indices, before_bits, after_bits)


@triton.jit
def sum_kernel(
    bits_ptr,
    numel,
    first,
    place,
    words_0_ptr,
    words_1_ptr,
    sums_0_ptr,
    sums_1_ptr,
    SEED_0: tl.constexpr,
    SEED_1: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write a program's share of both lanes. Tile `first` starts `place` elements before `bits_ptr`."""
    program = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, TILE)  # [TILE]
    total_0 = tl.zeros([TILE], tl.uint64)
    total_1 = tl.zeros([TILE], tl.uint64)
    for k in range(TILES):
        tile = program * TILES + k
        base = tile * TILE - place
        if (base >= 0) & (base + TILE <= numel):
            bits = tl.load(bits_ptr + base + offset)
        else:
            bits = tl.load(bits_ptr + base + offset, mask=(offset >= -base) & (offset < numel - base), other=0)
        value = _zero_extend(bits)
        index = (first + tile).to(tl.uint64)
        total_0 += value * (random_word(SEED_0, index) | 1)
        total_1 += value * (random_word(SEED_1, index) | 1)
    total_0 *= _zero_extend(tl.load(words_0_ptr + offset))
    total_1 *= _zero_extend(tl.load(words_1_ptr + offset))
    tl.store(sums_0_ptr + program, tl.sum(total_0, axis=0).to(tl.int64, bitcast=True))
    tl.store(sums_1_ptr + program, tl.sum(total_1, axis=0).to(tl.int64, bitcast=True))


@triton.jit
def _zero_extend(bits):
    """Widen integers of 8, 16 or 32 bits to uint64, the bits above zero."""
    WIDTH: tl.constexpr = bits.dtype.primitive_bitwidth
    return bits.to(tl.uint64) & ((1 << WIDTH) - 1)


def _spec(size: int) -> KernelSpec:
    signature = {
        "bits_ptr": f"*i{8 * size}",
        "numel": "i64",
        "first": "i64",
        "place": "i32",
        "words_0_ptr": "*i32",
        "words_1_ptr": "*i32",
        "sums_0_ptr": "*i64",
        "sums_1_ptr": "*i64",
    }
    constants = {"SEED_0": tile_seed(0), "SEED_1": tile_seed(1), "TILE": TILE, "TILES": _TILES}
    return KernelSpec(sum_kernel, f"{8 * size} bit", signature, constants, warps=_WARPS[size], streams=True)


KERNELS = [_spec(size) for size in _WARPS]
"""What is compiled ahead of time."""
