"""`patch_` with Triton: one kernel counts mismatches, the next writes where the device reads that there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import BITS_DTYPE, as_bits, write_back
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.settings import Settings, architecture_of
from rlforget_kernels.common.tables import (
    TRITON_TYPE,
    Table,
    find_tile,
    number_at,
    pointer_at,
    table_constexprs,
    tables,
)
from rlforget_kernels.common.tunable import Tunable

_SETTINGS = Settings("patch")  # by the size of an index


def foreach_patch_(
    weights: Sequence[Tensor],
    indices: Sequence[Tensor],
    expected_bits: Sequence[Tensor],
    new_bits: Sequence[Tensor],
) -> Tensor:
    """See `rlforget_kernels.patch`."""
    held = [as_bits(weight) for weight in weights]
    mismatches = torch.zeros(len(held), dtype=torch.int64, device=held[0].device)
    numbers = ([bits.numel() for bits in held], list(range(len(held))))
    listed = tables((indices, expected_bits, new_bits, held), _SETTINGS.blocks(mismatches.device), numbers)
    for table in listed:
        launch(mismatch_kernel, table.tiles, table.rows, table.owners, mismatches, **_launched(table))
    total = mismatches.sum()
    for table in listed:
        launch(write_kernel, table.tiles, table.rows, table.owners, total, **_launched(table))
    for weight, bits in zip(weights, held, strict=True):
        write_back(weight, bits)
    return mismatches


def _launched(table: Table) -> dict[str, Any]:
    """What a kernel is launched with to read a table."""
    index, bits, *_ = table.dtypes
    setting = _SETTINGS.at(index.itemsize, architecture_of(table.rows.device))
    return table.constexprs | {"INDEX_TYPE": TRITON_TYPE[index], "TYPE": TRITON_TYPE[bits]} | setting.launched


@triton.jit
def mismatch_kernel(
    rows_ptr,
    owners_ptr,
    mismatches_ptr,  # int64 [tensors], zeros
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX_TYPE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, in a tile of indices, those outside the tensor or at other bits than expected."""
    row_ptr, base, length = find_tile(rows_ptr, owners_ptr, tl.program_id(0).to(tl.int64), COLUMNS, BLOCK)
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    listed = offset < length - base
    index = tl.load(pointer_at(row_ptr, 0, INDEX_TYPE, ALIGNED) + base + offset, mask=listed, other=0).to(tl.int64)
    expected = tl.load(pointer_at(row_ptr, 1, TYPE, ALIGNED) + base + offset, mask=listed, other=0)
    inside = (index >= 0) & (index < number_at(row_ptr, 4))
    found = tl.load(pointer_at(row_ptr, 3, TYPE, ALIGNED) + index, mask=listed & inside, other=0)
    wrong = listed & ((found != expected) | (inside == 0))
    count = tl.sum(wrong.to(tl.int32), axis=0)
    # Mostly there is none. Integers: the order of additions does not matter.
    tl.atomic_add(mismatches_ptr + number_at(row_ptr, 5), count.to(tl.int64), mask=count > 0, sem="relaxed")


@triton.jit
def write_kernel(
    rows_ptr,
    owners_ptr,
    total_ptr,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX_TYPE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a tile of new bits, unless there was a mismatch anywhere."""
    if tl.load(total_ptr) == 0:
        row_ptr, base, length = find_tile(rows_ptr, owners_ptr, tl.program_id(0).to(tl.int64), COLUMNS, BLOCK)
        offset = tl.arange(0, BLOCK)  # [BLOCK]
        listed = offset < length - base
        index = tl.load(pointer_at(row_ptr, 0, INDEX_TYPE, ALIGNED) + base + offset, mask=listed, other=0)
        new = tl.load(pointer_at(row_ptr, 2, TYPE, ALIGNED) + base + offset, mask=listed, other=0)
        tl.store(pointer_at(row_ptr, 3, TYPE, ALIGNED) + index.to(tl.int64), new, mask=listed)


def _specs() -> list[KernelSpec]:
    specs = []
    for dtype, index in [*((dtype, torch.int32) for dtype in BITS_DTYPE.values()), (torch.int16, torch.int64)]:
        size, label = dtype.itemsize, f"{8 * dtype.itemsize} bit, {str(index).removeprefix('torch.')} indices"
        constants = table_constexprs(6) | {"INDEX_TYPE": TRITON_TYPE[index], "TYPE": TRITON_TYPE[dtype]}
        settings = dict[str, Any](settings=_SETTINGS, size=index.itemsize)
        for kernel, number, reads, writes in (
            (mismatch_kernel, "mismatches_ptr", index.itemsize + 2 * size, 0),
            (write_kernel, "total_ptr", index.itemsize + size, size),
        ):
            signature = {"rows_ptr": "*i64", "owners_ptr": "*i32", number: "*i64"}
            specs.append(KernelSpec(kernel, label, signature, constants, reads=reads, writes=writes, **settings))
    return [*specs, *(spec.unaligned() for spec in specs[-2:])]


KERNELS = _specs()
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    weight = torch.zeros(elements, dtype=torch.int16, device=device)
    indices = torch.arange(0, elements, 100, dtype={4: torch.int32, 8: torch.int64}[size], device=device)
    sides = [weight[indices], weight[indices] + 1]

    def call() -> Tensor:
        foreach_patch_([weight], [indices], sides[:1], sides[1:])
        sides.reverse()  # the next call finds what this one wrote
        return weight

    return call


TUNABLE = [Tunable(_SETTINGS, _trial, sizes=(4, 8), loads=(1, 2, 4))]
"""What `rlforget_kernels.tune` measures."""
