"""`rollback_` with Triton."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import narrowed_bits, result_bits64
from rlforget_kernels.common.bits import BITS_DTYPE, as_bits, write_back
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.settings import Settings
from rlforget_kernels.common.tables import TRITON_TYPE, find_tile, number_at, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable

# Sixteen elements a thread: one load of 16 bytes of the narrowest weights, and registers for their random words.
_SETTINGS = Settings("rollback")


def foreach_rollback_(
    weights: list[Tensor],
    before: list[Tensor],
    indices: Sequence[Tensor | None],
    scores: Sequence[Tensor | None],
    threshold: float,
    strength: float,
    seed: int | None,
    offsets: Sequence[int],
    by_share: bool,
) -> None:
    """See `rlforget_kernels.rollback`."""
    bits = [as_bits(weight) for weight in weights]
    old = [as_bits(one) for one in before]
    where = [one if index is None else index.contiguous() for one, index in zip(bits, indices, strict=True)]
    judged = [
        one if score is None else as_bits(score).view(torch.float32) for one, score in zip(bits, scores, strict=True)
    ]
    kinds = [
        (weight.dtype, index is not None, score is not None)
        for weight, index, score in zip(weights, indices, scores, strict=True)
    ]
    blocks, firsts = _SETTINGS.blocks(bits[0].device), [signed(offset) for offset in offsets]
    numbers = (float(threshold), _float64_bits(strength), signed(mix64_int((seed or 0) % 2**64)))
    for table in tables((old, bits, where, judged), blocks, [firsts], kinds):
        setting = _SETTINGS.on(bits[table.members[0]])
        dtype, gathered, scored = table.kind
        index_dtype = table.dtypes[2] if gathered else torch.int32
        whole = strength == 1.0 and not by_share
        constexprs = _constexprs(dtype, whole, gathered, scored, by_share, seed is not None, index_dtype)
        arguments = (table.rows, table.owners, *numbers)
        launch(rollback_kernel, table.tiles, *arguments, **table.constexprs, **constexprs, **setting.launched)
    for weight, one in zip(weights, bits, strict=True):
        write_back(weight, one)


def _float64_bits(value: float) -> int:
    """`value` as int64 bits: Triton would pass a float as float32."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _constexprs(
    dtype: torch.dtype,
    whole: bool,
    gathered: bool,
    scored: bool,
    by_share: bool = False,
    stochastic: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> dict[str, Any]:
    layout = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    return {
        "TYPE": TRITON_TYPE[BITS_DTYPE[dtype.itemsize]],
        "INDEX_TYPE": TRITON_TYPE[index_dtype],
        "EXPONENT": layout.exponent,
        "MANTISSA": layout.mantissa,
        "OVERFLOW": layout.overflow,
        "NAN_CODE": layout.nan,
        "WHOLE": whole,
        "FLOAT64": dtype is torch.float64,
        "GATHERED": gathered,
        "SCORED": scored,
        "BY_SHARE": by_share,
        "STOCHASTIC": stochastic and dtype.itemsize < 4,
    }


@triton.jit
def rollback_kernel(
    rows_ptr,  # addresses of the bits before, the weight's, the indices and the scores, and the weight's offset
    owners_ptr,
    threshold,
    strength_bits,
    mixed_seed,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    INDEX_TYPE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    WHOLE: tl.constexpr,
    FLOAT64: tl.constexpr,
    GATHERED: tl.constexpr,
    SCORED: tl.constexpr,
    BY_SHARE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put one tile of coordinates back."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    before_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED)
    bits_ptr = pointer_at(row_ptr, 1, TYPE, ALIGNED)
    indices_ptr = pointer_at(row_ptr, 2, INDEX_TYPE, ALIGNED)
    score_ptr = pointer_at(row_ptr, 3, tl.float32, ALIGNED)
    first = number_at(row_ptr, 4)
    if GATHERED:
        offset = tl.arange(0, BLOCK)  # [BLOCK]
    else:
        LANES: tl.constexpr = max(128 // TYPE.primitive_bitwidth, 4)  # 16 bytes of weights, and of scores
        offset = tl.arange(0, BLOCK // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    full = base + BLOCK <= numel
    if full:
        index, now, old, score, chosen = _load_tile(
            bits_ptr, before_ptr, indices_ptr, score_ptr, base + offset, None, threshold, GATHERED, SCORED, BY_SHARE
        )
    else:
        inside = offset < numel - base
        index, now, old, score, chosen = _load_tile(
            bits_ptr, before_ptr, indices_ptr, score_ptr, base + offset, inside, threshold, GATHERED, SCORED, BY_SHARE
        )
        chosen = chosen & inside
    if not GATHERED:
        index = base + offset  # the same, but what comes out of branches some compilers do not know to be contiguous
    if WHOLE:
        new = old
    elif FLOAT64:
        step = tl.cast(strength_bits, tl.int64).to(tl.float64, bitcast=True)
        if BY_SHARE:
            step *= score.to(tl.float64)
        value = now.to(tl.float64, bitcast=True)
        new = result_bits64(value - step * (value - old.to(tl.float64, bitcast=True)))
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        step = tl.cast(strength_bits, tl.int64).to(tl.float64, bitcast=True).to(tl.float32)
        if BY_SHARE:
            step *= score
        value = widen((now.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA)
        goal = widen((old.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA)
        moved = value - step * (value - goal)
        code = narrowed_bits(moved, first + index, mixed_seed, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC)
        new = code.to(TYPE)
    if BY_SHARE:
        new = tl.where(step == 1, old, new)
        chosen = chosen & (step != 0)
    if GATHERED:
        tl.store(bits_ptr + index, new, mask=chosen)
    elif full:
        # At least 16 bytes at a time, where any of them changes: a mask that told elements apart would split them.
        any_chosen = tl.max(chosen.to(tl.int32), axis=1)[:, None] != 0
        new = tl.where(chosen, new, now)
        tl.store(bits_ptr + index, new, mask=tl.broadcast_to(any_chosen, (BLOCK // LANES, LANES)))
    else:
        tl.store(bits_ptr + index, new, mask=chosen)


@triton.jit
def _load_tile(
    bits_ptr,
    before_ptr,
    indices_ptr,
    score_ptr,
    place,  # int64, any shape: what to load of `before`
    inside,  # like `place`, or None for a full tile
    threshold,
    GATHERED: tl.constexpr,
    SCORED: tl.constexpr,
    BY_SHARE: tl.constexpr,
):
    """Flat indices, the bits there now and before, their scores, and which of them are to be written."""
    index = place
    if GATHERED:
        index = tl.load(indices_ptr + place, mask=inside).to(tl.int64)
    now = tl.load(bits_ptr + index, mask=inside)
    old = tl.load(before_ptr + place, mask=inside)
    chosen = now != old
    score = threshold
    if SCORED:
        score = tl.load(score_ptr + place, mask=inside)
        if not BY_SHARE:
            chosen = chosen & (score >= threshold)
    return index, now, old, score, chosen


def _spec(
    dtype: torch.dtype, whole: bool, gathered: bool, stochastic: bool = False, by_share: bool = False
) -> KernelSpec:
    """A dense compilation takes a score, one that gathers takes none or shares."""
    label = f"{str(dtype).removeprefix('torch.')} {'whole' if whole else 'by chance' if stochastic else 'part'} "
    scored = by_share or not gathered
    return KernelSpec(
        rollback_kernel,
        label + ("gathered" if gathered else "dense scored") + (" by share" if by_share else ""),
        {
            "rows_ptr": "*i64",
            "owners_ptr": "*i32",
            "threshold": "fp32",
            "strength_bits": "i64",
            "mixed_seed": "i64",
        },
        table_constexprs(5) | _constexprs(dtype, whole, gathered, scored, by_share, stochastic),
        streams=not gathered,
        reads=None if gathered else 2 * dtype.itemsize + 4,
        writes=dtype.itemsize,
        settings=_SETTINGS,
        size=dtype.itemsize,
    )


_PART = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn)
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)

KERNELS = [_spec(dtype, whole, False) for whole, dtypes in ((False, _PART), (True, _WHOLE)) for dtype in dtypes]
KERNELS += [_spec(dtype, False, False, True) for dtype in (torch.bfloat16, torch.float8_e4m3fn)]
# Gathering costs alike, whole or in part: the widest, the usual and the narrowest elements stand for the others.
KERNELS += [_spec(torch.float64, False, True), _spec(torch.bfloat16, False, True, True), _spec(torch.int8, True, True)]
# Of the soft rule, which gathers: the usual elements; and dense, for its loads.
KERNELS += [_spec(torch.bfloat16, False, gathered, True, by_share=True) for gathered in (True, False)]
KERNELS += [_spec(torch.bfloat16, False, False, True).unaligned()]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    """A twentieth of the coordinates differ, and hardly move."""
    dtype = {1: torch.float8_e5m2, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    weight = torch.ones(elements, device=device).to(dtype)
    before = weight.clone()
    before[::20] = 2.0

    def call() -> Tensor:
        foreach_rollback_([weight], [before], [None], [None], 0.0, 1e-9, None, [0], False)
        return weight

    return call


TUNABLE = [Tunable(_SETTINGS, _trial, loads=(1, 2))]
"""What `rlforget_kernels.tune` measures."""
