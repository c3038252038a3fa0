"""`fingerprint` with Triton: a program adds up tiles place by place, each times its tile factor.

The place factors come last: they are the same for every tile, and so is the sum they multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.gpu_math import random_word
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.settings import Setting, Settings, architecture_of
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
from rlforget_kernels.fingerprint import reference
from rlforget_kernels.fingerprint.pieces import Piece, pieces
from rlforget_kernels.fingerprint.reference import TILE, place_factors, tile_seed

# Many tiles a program make its end, where it multiplies by the place factors and reduces, cheap.
_SETTINGS = Settings("fingerprint")
_WARPS = 8  # a tile of words is one 16-byte load a thread
_PATCH = 1 << 20  # changed coordinates taken at a time: what bounds the temporaries


def foreach_fingerprint(weights: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    held = [as_bits(weight) for weight in weights]
    lanes = torch.zeros((len(weights), 2), dtype=torch.int64, device=weights[0].device if weights else None)
    cut = [
        part
        for position, (bits, offset) in enumerate(zip(held, offsets, strict=True))
        for piece in pieces(position, bits, offset)
        for part in _at_a_tile(piece)
    ]
    places = [piece.first % (TILE * piece.per_word) for piece in cut]
    tiles = [piece.first // (TILE * piece.per_word) for piece in cut]
    blocks = _SETTINGS.blocks(lanes.device)
    for table in tables(([piece.bits for piece in cut],), blocks, (tiles, places)):
        owners = torch.tensor([cut[member].tensor for member in table.members])
        lanes.index_add_(0, owners.to(lanes.device, non_blocking=True), _sums(table))  # without waiting for the device
    return lanes


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`. In plain torch: a patch is small beside its tensor."""
    parts = (side.split(_PATCH) for side in (indices, before_bits, after_bits))
    for part in zip(*parts, strict=True):
        fingerprint = reference.fingerprint_after_patch(fingerprint, *part)
    return fingerprint


def _at_a_tile(piece: Piece) -> list[Piece]:
    """Cut what lies before the first whole tile off, so that the rest starts with one."""
    tile = TILE * piece.per_word
    head = -piece.first % tile
    if head == 0 or head >= piece.bits.numel():
        return [piece]
    parts = ((piece.bits[:head], piece.first), (piece.bits[head:], piece.first + head))
    return [Piece(piece.tensor, bits, first, piece.per_word) for bits, first in parts]


def _sums(table: Table) -> Tensor:
    """Both lanes of every row of a table: int64 [rows, 2]."""
    device = table.rows.device
    factors = [place_factors(lane, device).to(torch.int32) for lane in range(2)]
    sums = torch.zeros((table.tiles + 1, 2), dtype=torch.int64, device=device)
    arguments = (table.rows, table.owners, *factors, sums[1:])
    setting = _SETTINGS.at(table.dtypes[0].itemsize, architecture_of(device))
    constexprs = table.constexprs | _constexprs(table.dtypes[0])
    launch(sum_kernel, table.tiles, *arguments, **constexprs, **setting.launched)
    before = sums.cumsum_(0)  # modulo 2**64, as are the lanes
    return before[table.ends] - before[table.starts]


def _constexprs(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "TYPE": TRITON_TYPE[dtype],
        "PER_WORD": 4 // dtype.itemsize,
        "SEED_0": tile_seed(0),
        "SEED_1": tile_seed(1),
        "TILE": TILE,
    }


@triton.jit
def sum_kernel(
    rows_ptr,  # with the number of the first tile, and the place in it where the row starts
    owners_ptr,
    factors_0_ptr,  # int32 [TILE]
    factors_1_ptr,
    sums_ptr,  # int64 [programs, 2]
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    PER_WORD: tl.constexpr,
    SEED_0: tl.constexpr,
    SEED_1: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a program's share of both lanes."""
    UNIT: tl.constexpr = TILE * PER_WORD
    program = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, program, COLUMNS, BLOCK)
    bits_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED)
    first = number_at(row_ptr, 1) + base // UNIT
    place = number_at(row_ptr, 2)
    offset = tl.arange(0, UNIT)  # [UNIT]
    total_0 = tl.zeros([UNIT], tl.uint64)
    total_1 = tl.zeros([UNIT], tl.uint64)
    if (place == 0) & (base + BLOCK <= numel):
        for k in tl.static_range(BLOCK // UNIT):
            value = _zero_extend(tl.load(bits_ptr + base + k * UNIT + offset))
            tile = (first + k).to(tl.uint64)
            total_0 += value * (random_word(SEED_0, tile) | 1)
            total_1 += value * (random_word(SEED_1, tile) | 1)
    else:
        for k in range(BLOCK // UNIT):
            here = base + k * UNIT - place + offset
            value = _zero_extend(tl.load(bits_ptr + here, mask=(here >= 0) & (here < numel), other=0))
            tile = (first + k).to(tl.uint64)
            total_0 += value * (random_word(SEED_0, tile) | 1)
            total_1 += value * (random_word(SEED_1, tile) | 1)
    shift = ((offset % PER_WORD) * (32 // PER_WORD)).to(tl.uint64)
    total_0 *= _zero_extend(tl.load(factors_0_ptr + offset // PER_WORD)) << shift
    total_1 *= _zero_extend(tl.load(factors_1_ptr + offset // PER_WORD)) << shift
    tl.store(sums_ptr + 2 * program, tl.sum(total_0, axis=0).to(tl.int64, bitcast=True))
    tl.store(sums_ptr + 2 * program + 1, tl.sum(total_1, axis=0).to(tl.int64, bitcast=True))


@triton.jit
def _zero_extend(bits):
    """Widen integers of 8, 16 or 32 bits to uint64, the bits above zero."""
    WIDTH: tl.constexpr = bits.dtype.primitive_bitwidth
    return bits.to(tl.uint64) & ((1 << WIDTH) - 1)


def _spec(dtype: torch.dtype, aligned: bool) -> KernelSpec:
    signature = {
        "rows_ptr": "*i64",
        "owners_ptr": "*i32",
        "factors_0_ptr": "*i32",
        "factors_1_ptr": "*i32",
        "sums_ptr": "*i64",
    }
    constants = table_constexprs(3, aligned) | _constexprs(dtype)
    label = "words" if dtype is torch.int32 else f"elements of {8 * dtype.itemsize} bit"
    settings: dict[str, Any] = {"settings": _SETTINGS, "size": dtype.itemsize}
    if dtype is not torch.int32:
        return KernelSpec(sum_kernel, label, signature, constants, **settings)
    return KernelSpec(sum_kernel, label, signature, constants, streams=True, reads=_read, writes=0, **settings)


def _read(setting: Setting) -> float:
    """A word, and beside a program's words the factors of either lane."""
    return 4 + 8 * TILE / setting.block


# Elements narrower than a word are streamed only where no word starts at their address, or they fill none.
KERNELS = [_spec(torch.int32, True), _spec(torch.int16, False), _spec(torch.int8, False)]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    weight = torch.zeros(elements, dtype=torch.int32, device=device)
    return lambda: foreach_fingerprint([weight], [0])


# Weights are read as words, and a tile of words takes these warps.
TUNABLE = [Tunable(_SETTINGS, _trial, sizes=(4,), loads=(4, 8, 16, 32), warps=(_WARPS,))]
"""What `rlforget_kernels.tune` measures."""
