"""Many tensors in one launch of a Triton kernel: a table of where they are, and whose tile each program takes.

A row of the table is a tensor: its size, its first tile, how many tiles it has, the addresses of what belongs to it,
and numbers that the operator adds. Tensors of one launch share their dtypes, and whether all of them start at 16 bytes:
that lets the compiler load 16 bytes at a time from an address that the kernel has to load first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_TYPE: dict[torch.dtype, tl.dtype] = {
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
"""The element type of a pointer into a tensor of the dtype."""

ALIGNMENT = 16
"""Bytes of the widest load."""
TILING = 3
"""Columns in front of the addresses."""
_TILING = tl.constexpr(TILING)


@dataclasses.dataclass(frozen=True)
class Table:
    """The tensors that one launch serves.

    Attributes:
        members: Their positions in the caller's lists, ascending.
        dtypes: The dtype of each address column.
        aligned: Whether every address is a multiple of `ALIGNMENT`.
        kind: What the caller gave as their kind.
        first: The first tile of each member, and at the end the number of tiles: the programs to launch.
        rows: int64 [members, COLUMNS], on the device: the tiling, the addresses, the operator's numbers.
        owners: int32 [tiles], on the device: the row of each tile.
    """

    members: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    aligned: bool
    kind: Any
    first: tuple[int, ...]
    rows: Tensor
    owners: Tensor

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return self.first[-1]

    @property
    def starts(self) -> Tensor:
        """The first tile of each member: int64 [members], on the device."""
        return self.rows[:, 1]

    @property
    def ends(self) -> Tensor:
        """The tile behind the last of each member: int64 [members], on the device."""
        return self.rows[:, 1] + self.rows[:, 2]

    @property
    def constexprs(self) -> dict[str, Any]:
        """The constants of a kernel that reads the table."""
        return table_constexprs(self.rows.shape[1] - TILING, self.aligned)

    def extended(self, *columns: Sequence[Tensor]) -> Table:
        """Return the table with the addresses of further lists of the caller behind its columns.

        Freshly allocated tensors start at `ALIGNMENT`; others must where the table is aligned.
        """
        addresses = [[column[member].data_ptr() for member in self.members] for column in columns]
        host = torch.tensor(addresses, dtype=torch.int64)
        rows = torch.cat([self.rows, host.T.to(self.rows.device, non_blocking=True)], dim=1)
        return dataclasses.replace(self, rows=rows)


def tables(
    columns: Sequence[Sequence[Tensor]],
    blocks: Mapping[int, int] | int,
    numbers: Sequence[Sequence[int]] = (),
    kinds: Sequence[Any] | None = None,
    extents: Sequence[int] | None = None,
) -> list[Table]:
    """Lay out lists of tensors for as few launches as their dtypes and alignments allow.

    Args:
        columns: Lists of one length; the k-th tensors of all lists share a row. Contiguous, on one device. The caller
            keeps them until the kernels are launched. The sizes of the first list's are what is cut into tiles.
        blocks: Elements a tile, for all, or by element size of the first list's.
        numbers: Lists of integers of that length, for the columns behind.
        kinds: What else tensors of one launch must have in common; by default nothing.
        extents: How many elements are cut into tiles, where those are not the first list's.

    Returns:
        Tables in the order of their first members. A tensor without elements has a row and no tile.
    """
    groups: dict[tuple[tuple[torch.dtype, ...], bool, Any], list[int]] = {}
    for position, tensors in enumerate(zip(*columns, strict=True)):
        aligned = all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
        kind = kinds[position] if kinds else None
        groups.setdefault((tuple(tensor.dtype for tensor in tensors), aligned, kind), []).append(position)
    laid_out = []
    for (dtypes, aligned, kind), members in groups.items():
        block = blocks if isinstance(blocks, int) else blocks[dtypes[0].itemsize]
        sizes = [extents[member] if extents else columns[0][member].numel() for member in members]
        counts = [triton.cdiv(size, block) for size in sizes]
        first = (0, *itertools.accumulate(counts))
        addresses = [[tensors[member].data_ptr() for member in members] for tensors in columns]
        chosen = [[values[member] for member in members] for values in numbers]
        host = torch.tensor([sizes, first[:-1], counts, *addresses, *chosen], dtype=torch.int64).T.contiguous()
        rows = host.to(columns[0][members[0]].device, non_blocking=True)
        each = torch.arange(len(members), dtype=torch.int32, device=rows.device)
        owners = torch.repeat_interleave(each, rows[:, 2], output_size=first[-1])
        laid_out.append(Table(tuple(members), dtypes, aligned, kind, first, rows, owners))
    return laid_out


def table_constexprs(columns: int, aligned: bool = True) -> dict[str, Any]:
    """Return the constants of a kernel that reads rows of so many addresses and numbers."""
    return {"COLUMNS": TILING + columns, "ALIGNED": aligned}


@triton.jit
def find_tile(rows_ptr, owners_ptr, tile, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the tile number `tile` lies: a pointer to its tensor's row, the flat index of its first element, the size.

    `pointer_at` and `number_at` read the columns of the row.
    """
    row_ptr = rows_ptr + tl.load(owners_ptr + tile).to(tl.int64) * COLUMNS
    base = (tile - tl.load(row_ptr + 1)) * BLOCK
    return row_ptr, base, tl.load(row_ptr)


@triton.jit
def number_at(row_ptr, COLUMN: tl.constexpr):
    """The number in a column of a row, counted from the addresses on."""
    return tl.load(row_ptr + _TILING + COLUMN)


@triton.jit
def pointer_at(row_ptr, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address in a column of a row, counted from the first address on, as a pointer to elements of TYPE."""
    pointer = number_at(row_ptr, COLUMN).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer
