"""`select_top`'s passes with Triton.

The pass that lists reads the scores once: a tile reserves room for its indices wherever there is some, and keeps where.
A second kernel puts them in order, and reads scores again only where a tile holds some of those that equal the last, or
found no room.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.score_bits import ROW, TRAILING_BINS, TRAILING_BITS
from rlforget_kernels.common.score_bits_gpu import (
    FORMS,
    IN_SHARED,
    LEADING_BINS,
    add_counts,
    count_leading,
    counted,
    counting_programs,
    new_rows,
    ordered,
    summed,
)
from rlforget_kernels.common.score_bits_gpu import TRAILING_BINS as _TRAILING_BINS
from rlforget_kernels.common.score_bits_gpu import TRAILING_BITS as _TRAILING_BITS
from rlforget_kernels.common.settings import Settings
from rlforget_kernels.common.tables import find_tile, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable
from rlforget_kernels.select_top.together import select_short as select_short

_COUNTING = Settings("select_top.count")
_LISTING = Settings("select_top.list")
_ROOM = 2**24  # indices in tiles that are kept, at two bytes each; tiles for which there is none are read again
_PART = 128  # indices put in order at a time: about as many as a tile has
_FAULT = tl.constexpr(0x7F800000)


def leading_histogram(scores: Sequence[Tensor]) -> Tensor:
    """See `rlforget_kernels.select_top`."""
    codes = [as_bits(score) for score in scores]
    device = codes[0].device
    setting, counts = _COUNTING.on(codes[0]), []
    for table in tables([codes], setting.block):
        programs = counting_programs(table.tiles, device)
        counts.append(new_rows(programs, device))
        arguments = (table.rows, table.owners, table.tiles, counts[-1])
        launch(leading_kernel, programs, *arguments, **table.constexprs, IN_SHARED=IN_SHARED, **setting.launched)
    return summed(counts, sum(code.numel() for code in codes), device)


class Trailing:
    """The second histogram, from which `select` knows how much room it needs.

    Attributes:
        above: How many scores lie above the bin.
    """

    def __init__(self, scores: Sequence[Tensor], leading: int) -> None:
        self._codes = [as_bits(score) for score in scores]
        self._leading = leading
        device = self._codes[0].device
        self._counts = torch.zeros(TRAILING_BINS, dtype=torch.int64, device=device)
        higher = torch.zeros(1, dtype=torch.int64, device=device)
        setting = _LISTING.on(self._codes[0])
        for table in tables([self._codes], setting.block):
            arguments = (table.rows, table.owners, self._counts, higher, leading)
            launch(trailing_kernel, table.tiles, *arguments, **table.constexprs, **setting.launched)
        self.above = int(higher)

    def histogram(self) -> Tensor:
        """The histogram, int64 [TRAILING_BINS], on the device."""
        return self._counts

    def sums(self) -> Tensor:
        """The sums of its rows of `ROW` bins."""
        return self._counts.view(-1, ROW).sum(1)

    def row(self, number: int) -> Tensor:
        """The bins of a row."""
        return self._counts.view(-1, ROW)[number]

    def select(self, trailing: int, ties: int) -> list[Tensor]:
        """List what lies above the score in bin `trailing`, and the first `ties` of those in it."""
        above = self.above + int(self._counts[trailing + 1 :].sum())
        return _listed(self._codes, self._leading << TRAILING_BITS | trailing, ties, above)


def indices_from(scores: Sequence[Tensor], bits: int, ties: int) -> tuple[list[Tensor], int, list[int]]:
    """See `rlforget_kernels.select_top`; the last is how many scores of each tensor are NaN or negative."""
    codes = [as_bits(score) for score in scores]
    setting = _LISTING.on(codes[0])
    above, equal, faults = ([0] * len(codes) for _ in range(3))
    for table in tables([codes], setting.block):
        counts = torch.zeros((3, len(table.members)), dtype=torch.int64, device=codes[0].device)
        arguments = (table.rows, table.owners, counts, len(table.members), bits)
        launch(count_kernel, table.tiles, *arguments, **table.constexprs, **setting.launched)
        for column, values in zip((above, equal, faults), counts.tolist(), strict=True):
            for member, value in zip(table.members, values, strict=True):
                column[member] = value
    if any(faults):
        return [], 0, faults
    taken = min(ties, sum(equal))
    return _listed(codes, bits, taken, sum(above)), taken, faults


def _listed(codes: Sequence[Tensor], bits: int, ties: int, total: int) -> list[Tensor]:
    """Write the indices of `total` scores above `bits`, and of the lowest `ties` of those that equal it."""
    device, setting = codes[0].device, _LISTING.on(codes[0])
    # An index within its tile is enough to remember until it is put in order.
    offsets = torch.empty(min(total, _ROOM), dtype=torch.int16, device=device)
    cursor = torch.zeros(1, dtype=torch.int64, device=device)
    found = []
    for table in tables([codes], setting.block):
        slots = torch.empty(table.tiles, dtype=torch.int64, device=device)
        before = torch.zeros((2, table.tiles + 1), dtype=torch.int64, device=device)
        counts = (before[:, 1:], before.stride(0))
        arguments = (table.rows, table.owners, offsets, len(offsets), cursor, slots, *counts, bits)
        launch(reserve_kernel, table.tiles, *arguments, **table.constexprs, **setting.launched)
        found.append((table, slots, before.cumsum_(1)))

    above, equal = ([0] * len(codes) for _ in range(2))
    for table, _, before in found:
        sums = before[:, table.ends] - before[:, table.starts]
        for column, values in zip((above, equal), sums.tolist(), strict=True):
            for member, value in zip(table.members, values, strict=True):
                column[member] = value
    earlier = itertools.accumulate(equal, initial=0)
    takes = [min(max(ties - before, 0), own) for before, own in zip(earlier, equal, strict=False)]
    indices = [
        torch.empty(higher + take, dtype=torch.int64, device=device) for higher, take in zip(above, takes, strict=True)
    ]
    for listed, slots, before in found:
        table = listed.extended(indices)
        own = torch.tensor([takes[member] for member in table.members]).to(device, non_blocking=True)
        noted = (table.rows, table.owners, offsets, len(offsets), slots, before, before.stride(0), own, bits)
        launch(order_kernel, table.tiles, *noted, **table.constexprs, PART=_PART, **setting.launched)
    return indices


@triton.jit
def _load_codes(bits_ptr, base, numel, outside, BLOCK: tl.constexpr):
    """A tile of codes [BLOCK], `outside` behind the end."""
    offset = tl.arange(0, BLOCK)
    if base + BLOCK <= numel:
        codes = ordered(tl.load(bits_ptr + base + offset))
    else:
        inside = offset < numel - base
        codes = tl.where(inside, ordered(tl.load(bits_ptr + base + offset, mask=inside, other=0)), outside)
    return codes


@triton.jit
def leading_kernel(
    rows_ptr,  # addresses of the scores' bits
    owners_ptr,
    tiles,
    counts_ptr,  # int32 [programs, LEADING_BINS]
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    IN_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count every so many-th tile by the leading bits."""
    counts_ptr += tl.program_id(0) * LEADING_BINS
    counts = tl.zeros([LEADING_BINS], tl.int32)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tl.cast(number, tl.int64), COLUMNS, BLOCK)
        bits_ptr = pointer_at(row_ptr, 0, tl.int32, ALIGNED)
        codes = _load_codes(bits_ptr, base, numel, 0, BLOCK)
        counts = count_leading(counts_ptr, counts, codes, IN_SHARED)
    add_counts(counts_ptr, counts, IN_SHARED)


@triton.jit
def trailing_kernel(
    rows_ptr,
    owners_ptr,
    histogram_ptr,  # int64 [TRAILING_BINS]
    higher_ptr,  # int64 [1]
    leading,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the scores of a tile in the bin `leading` by their trailing bits, and how many are above it."""
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tl.program_id(0).to(tl.int64), COLUMNS, BLOCK)
    codes = _load_codes(pointer_at(row_ptr, 0, tl.int32, ALIGNED), base, numel, -1, BLOCK)
    bins = codes >> _TRAILING_BITS
    one = tl.full([BLOCK], 1, tl.int64)
    # Few scores are in the bin: no two of a warp, as a rule.
    tl.atomic_add(histogram_ptr + (codes & (_TRAILING_BINS - 1)), one, mask=bins == leading, sem="relaxed")
    higher = tl.sum((bins > leading).to(tl.int32), axis=0)
    tl.atomic_add(higher_ptr, higher.to(tl.int64), mask=higher > 0, sem="relaxed")


@triton.jit
def count_kernel(
    rows_ptr,
    owners_ptr,
    counts_ptr,  # int64 [3, members]: above, equal, faults
    members,
    least,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add what a tile has above `least`, equal to it, and of NaN and negative scores, to the counts of its tensor."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    codes = _load_codes(pointer_at(row_ptr, 0, tl.int32, ALIGNED), base, numel, -1, BLOCK)
    count_ptr = counts_ptr + tl.load(owners_ptr + tile)
    above = tl.sum((codes > least).to(tl.int32), axis=0).to(tl.int64)
    equal = tl.sum((codes == least).to(tl.int32), axis=0).to(tl.int64)
    faults = tl.sum((codes > _FAULT).to(tl.int32), axis=0).to(tl.int64)
    tl.atomic_add(count_ptr, above, mask=above > 0, sem="relaxed")
    tl.atomic_add(count_ptr + members, equal, mask=equal > 0, sem="relaxed")
    tl.atomic_add(count_ptr + 2 * members, faults, mask=faults > 0, sem="relaxed")


@triton.jit
def reserve_kernel(
    rows_ptr,
    owners_ptr,
    offsets_ptr,  # int16 [room]: the indices in their tiles of what is above `least`, tile by tile in no order
    room,
    cursor_ptr,  # int64 [1]: how many there are so far
    slots_ptr,  # int64 [tiles]: where a tile's begin
    counts_ptr,  # int64 [2, tiles]: how many a tile has above, and equal
    stride,
    least,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Note where a tile's scores are above `least`, and how many equal it."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    codes = _load_codes(pointer_at(row_ptr, 0, tl.int32, ALIGNED), base, numel, -1, BLOCK)
    above = (codes > least).to(tl.int32)  # [BLOCK]
    rank = tl.cumsum(above, axis=0)
    count = tl.sum(above, axis=0).to(tl.int64)
    slot = tl.atomic_add(cursor_ptr, count, sem="relaxed")
    tl.store(slots_ptr + tile, slot)
    tl.store(counts_ptr + tile, count)
    tl.store(counts_ptr + stride + tile, tl.sum((codes == least).to(tl.int32), axis=0).to(tl.int64))
    place = slot + rank - 1
    tl.store(offsets_ptr + place, tl.arange(0, BLOCK).to(tl.int16), mask=(above != 0) & (place < room))


@triton.jit
def order_kernel(
    rows_ptr,  # addresses of the scores' bits and of the indices
    owners_ptr,
    offsets_ptr,
    room,
    slots_ptr,
    before_ptr,  # int64 [2, tiles + 1]: how many there are above, and equal, before each tile of the table
    stride,
    takes_ptr,  # int64 [members]: how many that equal `least` each tensor lists
    least,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Write the indices of one tile where they belong."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    first = tile - base // BLOCK
    indices_ptr = pointer_at(row_ptr, 1, tl.int64, ALIGNED)
    above = tl.load(before_ptr + tile)
    count = tl.load(before_ptr + tile + 1) - above
    above -= tl.load(before_ptr + first)
    equal = tl.load(before_ptr + stride + tile)
    equal_count = tl.load(before_ptr + stride + tile + 1) - equal
    equal -= tl.load(before_ptr + stride + first)
    take = tl.load(takes_ptr + tl.load(owners_ptr + tile))
    out_ptr = indices_ptr + above + tl.minimum(equal, take)
    slot = tl.load(slots_ptr + tile)
    if ((equal_count > 0) & (equal < take)) | (slot + count > room):
        codes = _load_codes(pointer_at(row_ptr, 0, tl.int32, ALIGNED), base, numel, -1, BLOCK)
        is_equal = (codes == least).to(tl.int32)
        chosen = (codes > least).to(tl.int32)
        chosen += tl.where(tl.cumsum(is_equal, axis=0) <= take - equal, is_equal, 0)
        tl.store(out_ptr + tl.cumsum(chosen, axis=0) - 1, base + tl.arange(0, BLOCK), mask=chosen != 0)
    elif count > 0:
        for part in range(0, count, PART):
            place = part + tl.arange(0, PART)
            inside = place < count
            offset = tl.load(offsets_ptr + slot + place, mask=inside, other=0)
            tl.store(out_ptr + place, base + offset, mask=inside)


def _specs() -> list[KernelSpec]:
    lists = {"rows_ptr": "*i64", "owners_ptr": "*i32"}
    leading = lists | {"tiles": "i32", "counts_ptr": "*i32"}
    trailing = lists | {"histogram_ptr": "*i64", "higher_ptr": "*i64", "leading": "i32"}
    count = lists | {"counts_ptr": "*i64", "members": "i32", "least": "i32"}
    noted = lists | {"offsets_ptr": "*i16", "room": "i64", "stride": "i64", "slots_ptr": "*i64", "least": "i32"}
    reserve = noted | {"cursor_ptr": "*i64", "counts_ptr": "*i64"}
    order = noted | {"before_ptr": "*i64", "takes_ptr": "*i64"}

    def streaming(
        kernel: Any, label: str, signature: dict[str, str], settings: Settings, writes: int, **constexprs: Any
    ) -> KernelSpec:
        return KernelSpec(
            kernel,
            label,
            signature,
            table_constexprs(1) | constexprs,
            streams=True,
            reads=4,
            writes=writes,
            settings=settings,
            size=4,
        )

    constexprs = table_constexprs(2) | {"PART": _PART}
    specs = [
        *(streaming(leading_kernel, counted(form), leading, _COUNTING, 0, IN_SHARED=form) for form in FORMS),
        streaming(trailing_kernel, "trailing bits", trailing, _LISTING, 0),
        streaming(count_kernel, "above and equal", count, _LISTING, 0),
        # Two bytes for each element: masked, so that only those above are stored.
        streaming(reserve_kernel, "above and equal", reserve, _LISTING, 2),
        KernelSpec(order_kernel, "int64", order, constexprs, settings=_LISTING, size=4),
    ]
    return [*specs, *(spec.unaligned() for spec in specs)]


KERNELS = _specs()
"""What is compiled ahead of time."""


def _trial(work: Callable[[Tensor], object]) -> Callable[[int, int, torch.device], Callable[[], object]]:
    def trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
        score = torch.rand(elements, device=device)
        return lambda: work(score)

    return trial


TUNABLE = [
    Tunable(_COUNTING, _trial(lambda score: leading_histogram([score])), sizes=(4,), warps=(4, 8, 16)),
    Tunable(_LISTING, _trial(lambda score: indices_from([score], 0x3F7AE148, 0)), sizes=(4,)),  # 2% of [0, 1)
]
"""What `rlforget_kernels.tune` measures."""
