"""`conflict_score` with Triton. Counting by integer atomics: their order does not change a sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import result_bits
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.gpu_math import random_word
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.conflict_score import SCORES

_BLOCK = 2048


def conflict_score(
    delta: Tensor,
    score: str,
    earlier: Tensor | None = None,
    later: Tensor | None = None,
    direction: Tensor | None = None,
    damping: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `rlforget_kernels.conflict_score`."""
    scores = torch.empty(delta.shape, dtype=torch.float32, device=delta.device)
    histogram = torch.zeros(1 << 15, dtype=torch.int64, device=delta.device)
    given = [delta if tensor is None else tensor for tensor in (delta, earlier, later, direction)]
    changes, *others = (as_bits(tensor).view(torch.float32) for tensor in given)
    launch(
        score_kernel,
        triton.cdiv(delta.numel(), _BLOCK),
        changes,
        *others,
        as_bits(scores),
        histogram,
        delta.numel(),
        float(damping),
        signed(mix64_int(seed % 2**64)),
        signed(offset),
        SCORE=score,
        BLOCK=_BLOCK,
    )
    return scores, histogram


@triton.jit
def score_kernel(
    delta_ptr,
    earlier_ptr,
    later_ptr,
    direction_ptr,
    scores_ptr,  # the bits, int32 [numel]
    histogram_ptr,  # int64 [32768]
    numel,
    damping,
    mixed_seed,
    first,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Score and count one tile."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if base + BLOCK <= numel:
        bits = _score_tile(
            delta_ptr, earlier_ptr, later_ptr, direction_ptr, damping, mixed_seed, first, base, None, SCORE, BLOCK
        )
        tl.store(scores_ptr + base + offset, bits)
        tl.atomic_add(histogram_ptr + (bits >> 16), tl.full([BLOCK], 1, tl.int64), sem="relaxed")
    else:
        inside = offset < numel - base
        bits = _score_tile(
            delta_ptr, earlier_ptr, later_ptr, direction_ptr, damping, mixed_seed, first, base, inside, SCORE, BLOCK
        )
        tl.store(scores_ptr + base + offset, bits, mask=inside)
        bins = tl.where(inside, bits >> 16, 0)
        tl.atomic_add(histogram_ptr + bins, tl.full([BLOCK], 1, tl.int64), mask=inside, sem="relaxed")


@triton.jit
def _score_tile(
    delta_ptr,
    earlier_ptr,
    later_ptr,
    direction_ptr,
    damping,
    mixed_seed,
    first,
    base,
    inside,  # [BLOCK], or None for a full tile
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bits of the scores, int32 [BLOCK]."""
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if SCORE == "random":
        index = (base + offset + first).to(tl.uint64)
        word = random_word(tl.cast(mixed_seed, tl.int64).to(tl.uint64), index)
        value = (word >> 40).to(tl.int32).to(tl.float32) * (2.0**-24)
    else:
        value = tl.load(delta_ptr + base + offset, mask=inside)
        if SCORE == "magnitude":
            value = tl.abs(value)
        elif SCORE == "opposed":
            value = -(tl.load(direction_ptr + base + offset, mask=inside) * value)
        elif SCORE == "subspace":
            value = tl.load(direction_ptr + base + offset, mask=inside) * value
        else:
            quadratic = tl.load(earlier_ptr + base + offset, mask=inside) * value * value
            if SCORE == "taylor":
                value = tl.load(direction_ptr + base + offset, mask=inside) * value + 0.5 * quadratic
            elif SCORE == "two_fisher":
                damped = tl.load(later_ptr + base + offset, mask=inside) + damping
                nothing = (quadratic == 0) & (damped == 0)
                value = tl.where(nothing, 0.0, tl.div_rn(quadratic, tl.where(nothing, 1.0, damped)))
            else:
                value = quadratic
    return tl.where(value <= 0, 0, result_bits(value))


KERNELS = [
    KernelSpec(
        score_kernel,
        score,
        {
            "delta_ptr": "*fp32",
            "earlier_ptr": "*fp32",
            "later_ptr": "*fp32",
            "direction_ptr": "*fp32",
            "scores_ptr": "*i32",
            "histogram_ptr": "*i64",
            "numel": "i64",
            "damping": "fp32",
            "mixed_seed": "i64",
            "first": "i64",
        },
        {"SCORE": score, "BLOCK": _BLOCK},
        streams=score != "random",
    )
    for score in SCORES
]
"""What is compiled ahead of time."""
