"""`sparse_delta` with Triton: one pass compares and keeps a bit an element, a second gathers at the bits that are set.

The order of the indices follows from the tiles' counts, so nothing depends on which program runs first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import BITS_DTYPE, as_bits, index_dtype
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.settings import Setting, Settings, architecture_of
from rlforget_kernels.common.tables import TRITON_TYPE, Table, find_tile, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable

_SETTINGS = Settings("sparse_delta")
_ROUND = 3 << 27  # elements whose bits, 48 MiB, are kept at a time; a larger tensor is a round of its own
_PART = 1024  # elements compacted at a time: what a program's registers hold with their ranks


def foreach_sparse_delta(
    before: Sequence[Tensor], after: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """See `rlforget_kernels.sparse_delta`."""
    indices, bits_before, bits_after = list[Tensor](), list[Tensor](), list[Tensor]()
    for some in _rounds([tensor.numel() for tensor in before]):
        found = _one_round(before[some], after[some])
        for outputs, more in zip((indices, bits_before, bits_after), found, strict=True):
            outputs += more
    return indices, bits_before, bits_after


def _rounds(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut lists of tensors into runs of `_ROUND` elements at most, or of one tensor."""
    start, room = 0, _ROUND
    for position, size in enumerate(sizes):
        if size > room and position > start:
            yield slice(start, position)
            start, room = position, _ROUND
        room -= size
    yield slice(start, len(sizes))


def _one_round(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Compare, wait once for the numbers of changes, and gather."""
    old, new = ([as_bits(tensor) for tensor in side] for side in (before, after))
    kinds = [index_dtype(bits.numel()) for bits in old]
    blocks = _SETTINGS.blocks(old[0].device) if old else {}
    compared = [(table, *_compare(table)) for table in tables((old, new), blocks, kinds=kinds)]
    changed = [0] * len(old)
    if compared:
        members = [member for table, _, _ in compared for member in table.members]
        totals = torch.cat([starts[table.ends] - starts[table.starts] for table, _, starts in compared])
        for member, total in zip(members, totals.tolist(), strict=True):
            changed[member] = total
    indices = [
        torch.empty(count, dtype=kind, device=bits.device)
        for count, kind, bits in zip(changed, kinds, old, strict=True)
    ]
    bits_before, bits_after = (
        [torch.empty(count, dtype=bits.dtype, device=bits.device) for count, bits in zip(changed, old, strict=True)]
        for _ in range(2)
    )
    for table, flags, starts in compared:
        _gather(table.extended(indices, bits_before, bits_after), flags, starts)
    return indices, bits_before, bits_after


def _launched(table: Table) -> dict[str, Any]:
    """What a kernel is launched with to read a table."""
    (dtype, *_), setting = table.dtypes, _SETTINGS.at(table.dtypes[0].itemsize, architecture_of(table.rows.device))
    return table.constexprs | {"TYPE": TRITON_TYPE[dtype]} | setting.launched


def _compare(table: Table) -> tuple[Tensor, Tensor]:
    """Return one bit an element, and the number of changes before each tile of the table, and before its end."""
    launched = _launched(table)
    flags = torch.empty(table.tiles * launched["BLOCK"] // 32, dtype=torch.int32, device=table.rows.device)
    starts = torch.zeros(table.tiles + 1, dtype=torch.int64, device=table.rows.device)
    launch(compare_kernel, table.tiles, table.rows, table.owners, flags, starts[1:], **launched)
    return flags, starts.cumsum_(0)


def _gather(table: Table, flags: Tensor, starts: Tensor) -> None:
    """Write the outputs, which are the last columns of the table."""
    launched = _launched(table)
    part = min(_PART, launched["BLOCK"])
    arguments = (table.rows, table.owners, flags, starts)
    launch(gather_kernel, table.tiles, *arguments, **launched, INDEX_TYPE=TRITON_TYPE[table.kind], PART=part)


@triton.jit
def compare_kernel(
    rows_ptr,
    owners_ptr,
    flags_ptr,
    counts_ptr,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one bit an element (set where the sides differ; 32 a word, lowest first) and the count of each tile."""
    WORDS: tl.constexpr = BLOCK // 32
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    old_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED)
    new_ptr = pointer_at(row_ptr, 1, TYPE, ALIGNED)
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
    tl.store(counts_ptr + tile, tl.sum(tl.sum(differs, axis=1), axis=0).to(tl.int64))


@triton.jit
def gather_kernel(
    rows_ptr,
    owners_ptr,
    flags_ptr,
    starts_ptr,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    INDEX_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Write index and both bits of every flagged element of a tile behind those of its tensor's tiles before it."""
    tile = tl.program_id(0).to(tl.int64)
    start = tl.load(starts_ptr + tile)
    if tl.load(starts_ptr + tile + 1) > start:
        row_ptr, first, _ = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
        old_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED)
        new_ptr = pointer_at(row_ptr, 1, TYPE, ALIGNED)
        indices_ptr = pointer_at(row_ptr, 2, INDEX_TYPE, ALIGNED)
        before_ptr = pointer_at(row_ptr, 3, TYPE, ALIGNED)
        after_ptr = pointer_at(row_ptr, 4, TYPE, ALIGNED)
        out = start - tl.load(starts_ptr + tile - first // BLOCK)
        offset = tl.arange(0, PART)  # [PART]
        for part in range(BLOCK // PART):
            flags = tl.load(flags_ptr + tile * (BLOCK // 32) + (part * PART + offset) // 32)
            differs = (flags >> (offset % 32)) & 1
            place = out + tl.cumsum(differs, axis=0) - 1
            flagged = differs != 0
            index = first + part * PART + offset
            old = tl.load(old_ptr + index, mask=flagged)
            new = tl.load(new_ptr + index, mask=flagged)
            tl.store(indices_ptr + place, index.to(INDEX_TYPE), mask=flagged)
            tl.store(before_ptr + place, old, mask=flagged)
            tl.store(after_ptr + place, new, mask=flagged)
            out += tl.sum(differs, axis=0)


def _words_stored(setting: Setting) -> float:
    """A bit an element, as a word a thread: a tile of wide elements has fewer words than threads, which then share."""
    return max(1 / 8, 4 * 32 * setting.warps / setting.block)


def _specs() -> list[KernelSpec]:
    specs = []
    for size, dtype in BITS_DTYPE.items():
        label, settings = f"{8 * size} bit", dict[str, Any](settings=_SETTINGS, size=size)
        lists = {"rows_ptr": "*i64", "owners_ptr": "*i32", "flags_ptr": "*i32"}
        compare, gather = lists | {"counts_ptr": "*i64"}, lists | {"starts_ptr": "*i64"}
        constants = {"TYPE": TRITON_TYPE[dtype]}
        costs: dict[str, Any] = {"streams": True, "reads": 2 * size, "writes": _words_stored}
        specs.append(KernelSpec(compare_kernel, label, compare, table_constexprs(2) | constants, **costs, **settings))
        constants |= {"INDEX_TYPE": tl.int32, "PART": _PART}
        specs.append(KernelSpec(gather_kernel, label, gather, table_constexprs(5) | constants, **settings))
        if dtype is torch.int16:
            specs += [spec.unaligned() for spec in specs[-2:]]
            constants |= {"INDEX_TYPE": tl.int64}
            wide = table_constexprs(5) | constants
            specs.append(KernelSpec(gather_kernel, f"{label}, int64 indices", gather, wide, **settings))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    before = torch.zeros(elements, dtype=BITS_DTYPE[size], device=device)
    after = before.clone()
    after[::100] = 1
    return lambda: foreach_sparse_delta([before], [after])


TUNABLE = [Tunable(_SETTINGS, _trial)]
"""What `rlforget_kernels.tune` measures."""
