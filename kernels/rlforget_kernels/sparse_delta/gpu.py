"""`sparse_delta` with Triton: one pass compares and keeps a bit an element, a second gathers at the bits that are set.

The order of the indices follows from the tiles' counts, so nothing depends on which program runs first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, index_dtype
from rlforget_kernels.common.launch import STREAM_BLOCK, KernelSpec, launch

_PART = 1024  # elements compacted at a time: what a program's registers hold with their ranks


def sparse_delta(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.sparse_delta`."""
    old, new = as_bits(before), as_bits(after)
    block = STREAM_BLOCK[old.element_size()]
    tiles = triton.cdiv(old.numel(), block)
    flags = torch.empty(tiles * block // 32, dtype=torch.int32, device=old.device)
    counts = torch.empty(tiles, dtype=torch.int32, device=old.device)
    launch(compare_kernel, tiles, old, new, old.numel(), flags, counts, BLOCK=block)

    ends = counts.cumsum(0, dtype=torch.int64)
    changed = int(ends[-1]) if tiles else 0
    indices = torch.empty(changed, dtype=index_dtype(old.numel()), device=old.device)
    bits_before, bits_after = (torch.empty(changed, dtype=old.dtype, device=old.device) for _ in range(2))
    if changed:
        outputs = (indices, bits_before, bits_after)
        launch(gather_kernel, tiles, old, new, flags, counts, ends, *outputs, BLOCK=block, PART=_PART)
    return indices, bits_before, bits_after


@triton.jit
def compare_kernel(old_ptr, new_ptr, numel, flags_ptr, counts_ptr, BLOCK: tl.constexpr):
    """Write one bit an element (set where the sides differ; 32 a word, lowest first) and the count of each tile."""
    WORDS: tl.constexpr = BLOCK // 32
    tile = tl.program_id(0).to(tl.int64)
    base = tile * BLOCK
    word = tl.arange(0, WORDS)  # [WORDS]
    bit = tl.arange(0, 32)  # [32]
    offset = word[:, None] * 32 + bit[None, :]  # [WORDS, 32]
    if base + BLOCK <= numel:
        old = tl.load(old_ptr + base + offset)
        new = tl.load(new_ptr + base + offset)
        differs = (old != new).to(tl.int32)
    else:
        inside = offset < numel - base
        old = tl.load(old_ptr + base + offset, mask=inside, other=0)
        new = tl.load(new_ptr + base + offset, mask=inside, other=0)
        differs = (old != new).to(tl.int32)
    flags = tl.sum(differs << bit[None, :], axis=1)  # [WORDS], distinct bits: the sum is their union
    tl.store(flags_ptr + tile * WORDS + word, flags)
    tl.store(counts_ptr + tile, tl.sum(tl.sum(differs, axis=1), axis=0))


@triton.jit
def gather_kernel(
    old_ptr,
    new_ptr,
    flags_ptr,
    counts_ptr,
    ends_ptr,
    indices_ptr,
    before_ptr,
    after_ptr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Write index and both bits of every flagged element of a tile behind those of the tiles before it."""
    tile = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + tile)
    if count > 0:
        out = tl.load(ends_ptr + tile) - count
        offset = tl.arange(0, PART)  # [PART]
        for part in range(BLOCK // PART):
            base = tile * BLOCK + part * PART
            flags = tl.load(flags_ptr + base // 32 + offset // 32)
            differs = (flags >> (offset % 32)) & 1
            place = out + tl.cumsum(differs, axis=0) - 1
            flagged = differs != 0
            old = tl.load(old_ptr + base + offset, mask=flagged)
            new = tl.load(new_ptr + base + offset, mask=flagged)
            tl.store(indices_ptr + place, (base + offset).to(indices_ptr.dtype.element_ty), mask=flagged)
            tl.store(before_ptr + place, old, mask=flagged)
            tl.store(after_ptr + place, new, mask=flagged)
            out += tl.sum(differs, axis=0)


def _specs() -> list[KernelSpec]:
    specs = []
    for size, block in STREAM_BLOCK.items():
        bits = f"*i{8 * size}"
        compare = {"old_ptr": bits, "new_ptr": bits, "numel": "i64", "flags_ptr": "*i32", "counts_ptr": "*i32"}
        specs.append(KernelSpec(compare_kernel, f"{8 * size} bit", compare, {"BLOCK": block}, streams=True))
        gather = {
            "old_ptr": bits,
            "new_ptr": bits,
            "flags_ptr": "*i32",
            "counts_ptr": "*i32",
            "ends_ptr": "*i64",
            "indices_ptr": "*i32",
            "before_ptr": bits,
            "after_ptr": bits,
        }
        specs.append(KernelSpec(gather_kernel, f"{8 * size} bit", gather, {"BLOCK": block, "PART": _PART}))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""
