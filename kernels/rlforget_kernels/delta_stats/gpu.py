"""`delta_stats` with Triton: a program picks the changes of a tile out into scratch, then measures 256 at a time.

So the arithmetic follows the changes and not the tensor. Programs stay for the whole launch: each keeps its histograms
in registers over a run of tiles, and adds them up in memory where that ends. Those are integers; the float sums of a
tile are stored, and added up in order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common import exact_sums, rounding
from rlforget_kernels.common.arithmetic import FLOAT64_INFINITY
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.exact_sums import segment_sums
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.settings import Settings
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
from rlforget_kernels.delta_stats import reference
from rlforget_kernels.delta_stats.reference import PART, TILE

_SETTINGS = Settings("delta_stats")  # elements read at a time
_RUN = 32  # tiles that a program takes in a row
_SLOTS = 512  # programs; as many as a large device runs at once
_COUNTS = tl.constexpr(8)
_EXPONENT_BINS = tl.constexpr(256)
_STEP_BINS = tl.constexpr(128)
_ABSOLUTE = tl.constexpr(reference.ABSOLUTE_TOLERANCE)
_RELATIVE = tl.constexpr(reference.RELATIVE_TOLERANCE)
_EXPONENT_SHIFT = tl.constexpr(reference.EXPONENT_SHIFT)
_SUM_BITS = tl.constexpr(reference.SUM_BITS)
_BIAS = tl.constexpr(exact_sums.BIAS)
_MANTISSA = tl.constexpr(exact_sums.MANTISSA)
_LEAST_EXPONENT = tl.constexpr(exact_sums.LEAST_EXPONENT)
_INFINITY = tl.constexpr(rounding.INFINITY)
_INFINITY64 = tl.constexpr(FLOAT64_INFINITY)


def foreach_delta_stats(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.delta_stats`."""
    old, new = ([as_bits(tensor) for tensor in side] for side in (before, after))
    device = old[0].device
    ends = list(itertools.accumulate(triton.cdiv(bits.numel(), TILE) for bits in old))
    first_tiles = [0, *ends[:-1]]
    tile_sums = torch.zeros((2, ends[-1]), dtype=torch.float64, device=device)
    histograms = [torch.zeros((len(old), bins), dtype=torch.int64, device=device) for bins in (8, 256, 128)]
    largest = torch.zeros(len(old), dtype=torch.int64, device=device)
    dtypes = [tensor.dtype for tensor in before]
    for table in tables((old, new), TILE * _RUN, (list(range(len(old))), first_tiles), kinds=dtypes):
        _measure(table, tile_sums, largest, *histograms)
    totals = segment_sums(tile_sums.view(-1), ends + [ends[-1] + end for end in ends]).view(2, -1)
    counts, exponents, steps = histograms
    return (
        counts,
        torch.cat([totals, largest.view(torch.float64)[None]]).T.contiguous(),
        exponents,
        steps[:, :65].contiguous(),
    )


def _measure(table: Table, tile_sums: Tensor, *totals: Tensor) -> None:
    programs = min(table.tiles, _SLOTS)
    slots = torch.empty((programs, 2, TILE), dtype=table.dtypes[0], device=tile_sums.device)
    arguments = (table.rows, table.owners, table.tiles, slots, tile_sums[0], tile_sums[1], *totals)
    constexprs = table.constexprs | _constexprs(table.kind)
    launch(measure_kernel, programs, *arguments, **constexprs, **_SETTINGS.on(slots).launched)


def _constexprs(dtype: torch.dtype) -> dict[str, Any]:
    layout = FLOAT_FORMAT.get(dtype)
    return {
        "TYPE": TRITON_TYPE[{1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]],
        "FLOAT": dtype.is_floating_point,
        "UNSIGNED": dtype in (torch.uint8, torch.bool),
        "EXPONENT": layout.exponent if layout else 0,
        "MANTISSA": layout.mantissa if layout else 0,
        "RUN": _RUN,
        "TILE": TILE,
        "PART": PART,
    }


@triton.jit
def measure_kernel(
    rows_ptr,
    owners_ptr,
    runs,
    slots_ptr,  # [programs, 2, TILE]
    sums_ptr,  # float64 [tiles of all tensors], zeros
    squares_ptr,  # float64, likewise
    largest_ptr,  # bits of float64 [tensors], zeros
    counts_ptr,  # int64 [tensors, 8], zeros
    exponents_ptr,  # int64 [tensors, 256], zeros
    steps_ptr,  # int64 [tensors, 128], zeros
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    FLOAT: tl.constexpr,
    UNSIGNED: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    RUN: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Measure every so many runs of tiles, and add them to the totals of their tensors."""
    slot_ptr = slots_ptr + tl.program_id(0).to(tl.int64) * (2 * TILE)
    for run in range(tl.program_id(0), runs, tl.num_programs(0)):
        row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, run, COLUMNS, RUN * TILE)
        tensor = number_at(row_ptr, 2)
        first_tile = number_at(row_ptr, 3) + base // TILE
        old_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED) + base
        new_ptr = pointer_at(row_ptr, 1, TYPE, ALIGNED) + base
        left = numel - base
        exponents = tl.zeros([_EXPONENT_BINS], tl.int32)
        steps = tl.zeros([_STEP_BINS], tl.int32)
        counts = tl.zeros([_COUNTS], tl.int32)
        largest = tl.zeros([PART], tl.float64)
        for tile in range(tl.minimum(tl.cdiv(left, TILE), RUN)):
            changed = _pick(old_ptr + tile * TILE, new_ptr + tile * TILE, left - tile * TILE, slot_ptr, TILE, BLOCK)
            if changed > 0:
                tl.debug_barrier()  # what a thread reads now, others have written
                total = tl.full([], 0.0, tl.float64)
                squares = tl.full([], 0.0, tl.float64)
                for first in range(0, changed, PART):
                    lane = first + tl.arange(0, PART)
                    listed = lane < changed
                    old = tl.load(slot_ptr + lane, mask=listed, other=0).to(tl.int64)
                    new = tl.load(slot_ptr + TILE + lane, mask=listed, other=0).to(tl.int64)
                    size, finite, part_counts = _sizes(old, new, listed, FLOAT, UNSIGNED, EXPONENT, MANTISSA)
                    outside = PART - tl.sum(finite.to(tl.int32), axis=0)
                    counts += part_counts
                    largest = tl.maximum(largest, size)
                    exponents += _histogram(_exponent_bin(size), finite, outside, _EXPONENT_BINS)
                    steps += _histogram(
                        _step_bin(old, new, FLOAT, UNSIGNED, TYPE.primitive_bitwidth), finite, outside, _STEP_BINS
                    )
                    part_total, part_squares = _part_sums(size)
                    total += part_total
                    squares += part_squares
                tl.store(sums_ptr + first_tile + tile, total)
                tl.store(squares_ptr + first_tile + tile, squares)
                tl.debug_barrier()  # what others read still, a thread would write next
        _add(counts_ptr + tensor * _COUNTS, counts, _COUNTS)
        _add(exponents_ptr + tensor * _EXPONENT_BINS, exponents, _EXPONENT_BINS)
        _add(steps_ptr + tensor * _STEP_BINS, steps, _STEP_BINS)
        tl.atomic_max(largest_ptr + tensor, tl.max(largest, axis=0).to(tl.int64, bitcast=True), sem="relaxed")


@triton.jit
def _pick(old_ptr, new_ptr, left, slot_ptr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Write both sides of the changes of a tile, of which `left` elements exist, to the slot; return their number."""
    changed = 0
    offset = tl.arange(0, BLOCK)
    for start in range(0, TILE, BLOCK):
        if start + BLOCK <= left:
            old = tl.load(old_ptr + start + offset)
            new = tl.load(new_ptr + start + offset)
        else:
            inside = offset < left - start
            old = tl.load(old_ptr + start + offset, mask=inside, other=0)
            new = tl.load(new_ptr + start + offset, mask=inside, other=0)
        differs = old != new
        ones = differs.to(tl.int32)
        place = changed + tl.cumsum(ones, axis=0) - ones
        tl.store(slot_ptr + place, old, mask=differs)
        tl.store(slot_ptr + TILE + place, new, mask=differs)
        changed += tl.sum(ones, axis=0)
    return changed


@triton.jit
def _values(code, FLOAT: tl.constexpr, UNSIGNED: tl.constexpr, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """The values of `code` (bits in int64) in the dtype to compute in, and the bits of their sizes in int64."""
    if FLOAT:
        if EXPONENT > 0:
            CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
            values = widen((code & CODE).to(tl.uint32), EXPONENT, MANTISSA)
            return values, tl.abs(values).to(tl.int32, bitcast=True).to(tl.int64)
        else:
            values = code.to(tl.float64, bitcast=True)
            return values, tl.abs(values).to(tl.int64, bitcast=True)
    else:
        if UNSIGNED:
            code = code & 0xFF
        values = code.to(tl.float64)
        return values, tl.abs(values).to(tl.int64, bitcast=True)


@triton.jit
def _sizes(
    old,
    new,
    listed,
    FLOAT: tl.constexpr,
    UNSIGNED: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
):
    """The sizes of the changes in float64, 0 of what is not finite, where they are, and what they add to the counts."""
    infinity: tl.constexpr = _INFINITY if EXPONENT > 0 else _INFINITY64
    a, size_a = _values(old, FLOAT, UNSIGNED, EXPONENT, MANTISSA)
    b, size_b = _values(new, FLOAT, UNSIGNED, EXPONENT, MANTISSA)
    finite = (size_a < infinity) & (size_b < infinity)
    step = tl.where(finite, tl.abs(b - a), 0.0)
    side = tl.where(finite, tl.maximum(tl.abs(a), tl.abs(b)), 0.0)
    bad = finite == 0
    column = tl.arange(0, _COUNTS)
    counts = tl.where(column == 0, _count(listed), 0)
    counts += tl.where(column == 1, _count(listed & (bad | (step > _ABSOLUTE))), 0)
    counts += tl.where(column == 2, _count(listed & (bad | (step > side * _RELATIVE))), 0)
    counts += tl.where(column == 3, _count(listed & bad), 0)
    counts += tl.where(column == 4, _count(listed & (size_a > infinity)), 0)
    counts += tl.where(column == 5, _count(listed & (size_a == infinity)), 0)
    counts += tl.where(column == 6, _count(listed & (size_b > infinity)), 0)
    counts += tl.where(column == 7, _count(listed & (size_b == infinity)), 0)
    return step.to(tl.float64), listed & finite, counts


@triton.jit
def _count(mask):
    """How many are set."""
    return tl.sum(mask.to(tl.int32), axis=0)


@triton.jit
def _exponent_bin(size):
    """The bin of each size."""
    exponent = (size.to(tl.int64, bitcast=True) >> _MANTISSA) - _EXPONENT_SHIFT
    return tl.minimum(tl.maximum(exponent, 0), 255).to(tl.int32)


@triton.jit
def _rank(code, FLOAT: tl.constexpr, UNSIGNED: tl.constexpr, WIDTH: tl.constexpr):
    """`reference.rank` of bits in int64."""
    if FLOAT:
        MAGNITUDE: tl.constexpr = (1 << (WIDTH - 1)) - 1
        magnitude = code & MAGNITUDE
        return tl.where(code < 0, -magnitude, magnitude)
    elif UNSIGNED:
        return code & 0xFF
    else:
        return code


@triton.jit
def _step_bin(old, new, FLOAT: tl.constexpr, UNSIGNED: tl.constexpr, WIDTH: tl.constexpr):
    """The bits of the number of steps from `old` to `new`."""
    first = _rank(old, FLOAT, UNSIGNED, WIDTH)
    second = _rank(new, FLOAT, UNSIGNED, WIDTH)
    word = tl.maximum(first, second) - tl.minimum(first, second)  # may wrap: an unsigned word
    upper = (word >> 32) & 0xFFFFFFFF
    half = tl.where(upper > 0, upper, word & 0xFFFFFFFF).to(tl.float64)  # exact
    bits = (half.to(tl.int64, bitcast=True) >> _MANTISSA) - (_BIAS - 1)
    return tl.where(word == 0, 0, bits + tl.where(upper > 0, 32, 0)).to(tl.int32)


@triton.jit
def _histogram(bins, counted, outside, BINS: tl.constexpr):
    """Count the bins where `counted` is set; `outside` is in how many places it is not."""
    return tl.histogram(tl.where(counted, bins, 0), BINS) - tl.where(tl.arange(0, BINS) == 0, outside, 0)


@triton.jit
def _power_of_two(exponent):
    """`exact_sums.power_of_two` of an int64."""
    return ((exponent + _BIAS) << _MANTISSA).to(tl.float64, bitcast=True)


@triton.jit
def _part_sums(size):
    """The sums of sizes and of their squares, cut to multiples that follow from the largest."""
    most = tl.max(size, axis=0)
    exponent = tl.maximum((most.to(tl.int64, bitcast=True) >> _MANTISSA) - _BIAS, _LEAST_EXPONENT)
    infinite = most.to(tl.int64, bitcast=True) == _INFINITY64
    size = tl.where(infinite, 0.0, size)
    half = size * _power_of_two(-exponent + _SUM_BITS // 2)
    total = tl.sum((size * _power_of_two(-exponent + _SUM_BITS) + 0.5).to(tl.int64), axis=0).to(tl.float64)
    squares = tl.sum((half * half + 0.5).to(tl.int64), axis=0).to(tl.float64)
    unit = _power_of_two(exponent - _SUM_BITS // 2)
    total = total * _power_of_two(exponent - _SUM_BITS)
    squares = squares * unit * unit
    return tl.where(infinite, most, total), tl.where(infinite, most, squares)


@triton.jit
def _add(total_ptr, values, SIZE: tl.constexpr):
    """Add what is not 0 to int64 totals in memory."""
    tl.atomic_add(total_ptr + tl.arange(0, SIZE), values.to(tl.int64), mask=values != 0, sem="relaxed")


def _spec(dtype: torch.dtype) -> KernelSpec:
    constants = _constexprs(dtype)
    bits = f"*i{8 * dtype.itemsize}"
    signature = {"rows_ptr": "*i64", "owners_ptr": "*i32", "runs": "i32", "slots_ptr": bits}
    signature |= {"sums_ptr": "*fp64", "squares_ptr": "*fp64", "largest_ptr": "*i64"}
    signature |= {"counts_ptr": "*i64", "exponents_ptr": "*i64", "steps_ptr": "*i64"}
    label = str(dtype).removeprefix("torch.")
    return KernelSpec(
        measure_kernel,
        label,
        signature,
        table_constexprs(4) | constants,
        streams=True,
        reads=2 * dtype.itemsize,
        writes=2 * dtype.itemsize,  # to scratch, and of what changed alone
        settings=_SETTINGS,
        size=dtype.itemsize,
    )


KERNELS = [
    _spec(dtype)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.float8_e4m3fn, torch.int8)
]
# With an address an element, ten registers too many on two of three architectures. Smaller tiles spill on the third.
KERNELS += [dataclasses.replace(_spec(torch.bfloat16).unaligned(), spills=40)]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    dtype = {1: torch.float8_e5m2, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    before = torch.zeros(elements, device=device)
    after = before.clone()
    after[::100] = 1
    sides = before.to(dtype), after.to(dtype)
    return lambda: foreach_delta_stats(*([side] for side in sides))


TUNABLE = [Tunable(_SETTINGS, _trial, most=TILE)]
"""What `rlforget_kernels.tune` measures."""
