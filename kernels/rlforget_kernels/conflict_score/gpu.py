"""`conflict_score` with Triton: a program scores many tiles, and counts their scores as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.gpu_math import random_word
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.score_bits_gpu import (
    FORMS,
    IN_SHARED,
    LEADING_BINS,
    add_counts,
    count_leading,
    counted,
    counting_programs,
    new_rows,
    summed,
)
from rlforget_kernels.common.settings import Settings
from rlforget_kernels.common.tables import find_tile, number_at, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable
from rlforget_kernels.conflict_score import SCORES

_SETTINGS = Settings("conflict_score")


def foreach_conflict_score(
    deltas: list[Tensor],
    score: str,
    earlier: Sequence[Tensor | None],
    later: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    damping: float,
    seed: int,
    offsets: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.conflict_score`."""
    device = deltas[0].device
    scores = [torch.empty(delta.shape, dtype=torch.float32, device=device) for delta in deltas]
    read = scores if score == "random" else deltas  # it needs only to know how many there are
    flat = [as_bits(one).view(torch.float32) for one in read]
    inputs = [
        [
            own if tensor is None else as_bits(tensor).view(torch.float32)
            for own, tensor in zip(flat, given, strict=True)
        ]
        for given in (earlier, later, directions)
    ]
    columns, setting = (flat, *inputs, [as_bits(one) for one in scores]), _SETTINGS.on(flat[0])
    numbers, counts = (float(damping), signed(mix64_int(seed % 2**64))), []
    for table in tables(columns, setting.block, [[signed(offset) for offset in offsets]]):
        programs = counting_programs(table.tiles, device)
        counts.append(new_rows(programs, device))
        constexprs = table.constexprs | {"SCORE": score, "IN_SHARED": IN_SHARED}
        arguments = (table.rows, table.owners, table.tiles, counts[-1], *numbers)
        launch(score_kernel, programs, *arguments, **constexprs, **setting.launched)
    return scores, summed(counts, sum(one.numel() for one in flat), device)


@triton.jit
def score_kernel(
    rows_ptr,  # addresses of delta, earlier, later, direction and of the scores' bits, and the offset
    owners_ptr,
    tiles,
    counts_ptr,  # int32 [programs, LEADING_BINS]
    damping,
    mixed_seed,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCORE: tl.constexpr,
    IN_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Score and count every so many-th tile."""
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    counts_ptr += tl.program_id(0) * LEADING_BINS
    counts = tl.zeros([LEADING_BINS], tl.int32)
    for number in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tl.cast(number, tl.int64), COLUMNS, BLOCK)
        scores_ptr = pointer_at(row_ptr, 4, tl.int32, ALIGNED) + base
        if base + BLOCK <= numel:
            codes = _score_tile(row_ptr, damping, mixed_seed, base, None, ALIGNED, SCORE, BLOCK)
            tl.store(scores_ptr + offset, codes)
        else:
            inside = offset < numel - base
            codes = _score_tile(row_ptr, damping, mixed_seed, base, inside, ALIGNED, SCORE, BLOCK)
            codes = tl.where(inside, codes, 0)
            tl.store(scores_ptr + offset, codes, mask=inside)
        counts = count_leading(counts_ptr, counts, codes, IN_SHARED)
    add_counts(counts_ptr, counts, IN_SHARED)


@triton.jit
def _load(row_ptr, COLUMN: tl.constexpr, base, inside, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of the float32 tensor in a column of the table."""
    return tl.load(pointer_at(row_ptr, COLUMN, tl.float32, ALIGNED) + base + tl.arange(0, BLOCK), mask=inside)


@triton.jit
def _score_tile(
    row_ptr,
    damping,
    mixed_seed,
    base,
    inside,  # [BLOCK], or None for a full tile
    ALIGNED: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bits of the scores, int32 [BLOCK]."""
    if SCORE == "random":
        index = (number_at(row_ptr, 5) + base + tl.arange(0, BLOCK)).to(tl.uint64)
        word = random_word(tl.cast(mixed_seed, tl.int64).to(tl.uint64), index)
        value = (word >> 40).to(tl.int32).to(tl.float32) * (2.0**-24)
    else:
        value = _load(row_ptr, 0, base, inside, ALIGNED, BLOCK)
        if SCORE == "magnitude":
            value = tl.abs(value)
        elif SCORE == "opposed":
            value = -(_load(row_ptr, 3, base, inside, ALIGNED, BLOCK) * value)
        elif SCORE == "subspace":
            value = _load(row_ptr, 3, base, inside, ALIGNED, BLOCK) * value
        else:
            quadratic = _load(row_ptr, 1, base, inside, ALIGNED, BLOCK) * value * value
            if SCORE == "taylor":
                value = _load(row_ptr, 3, base, inside, ALIGNED, BLOCK) * value + 0.5 * quadratic
            elif SCORE == "two_fisher":
                damped = _load(row_ptr, 2, base, inside, ALIGNED, BLOCK) + damping
                nothing = (quadratic == 0) & (damped == 0)
                value = tl.where(nothing, 0.0, tl.div_rn(quadratic, tl.where(nothing, 1.0, damped)))
            else:
                value = quadratic
    return tl.where(value <= 0, 0, result_bits(value))


KERNELS = [
    KernelSpec(
        score_kernel,
        f"{score}, {counted(in_shared)}",
        {
            "rows_ptr": "*i64",
            "owners_ptr": "*i32",
            "tiles": "i32",
            "counts_ptr": "*i32",
            "damping": "fp32",
            "mixed_seed": "i64",
        },
        table_constexprs(6) | {"SCORE": score, "IN_SHARED": in_shared},
        streams=score != "random",
        reads=None if score == "random" else 4 + 4 * len(needed),
        writes=4,
        settings=_SETTINGS,
        size=4,
    )
    for in_shared in FORMS
    for score, needed in SCORES.items()
]
KERNELS += [spec.unaligned() for spec in KERNELS if spec.constexprs["SCORE"] == "two_fisher"]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    tensors = [torch.rand(elements, device=device) for _ in range(3)]
    delta, earlier, later = ([tensor] for tensor in tensors)
    return lambda: foreach_conflict_score(delta, "two_fisher", earlier, later, [None], 0.1, 0, [0])


TUNABLE = [Tunable(_SETTINGS, _trial, sizes=(4,), warps=(4, 8, 16))]
"""What `rlforget_kernels.tune` measures."""
