"""`rollback_`: put coordinates of a weight back to what they were, wholly or by a strength, in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.checks import require_in_range, require_indices
from rlforget_kernels.common.dispatch import backend, operator


def _check(weight: Tensor, before: Tensor, indices: Tensor | None, score: Tensor | None, strength: float) -> None:
    bits_dtype(weight.dtype)
    if before.dtype != weight.dtype:
        raise TypeError(f"rollback_: before: expected the dtype of weight, {weight.dtype}; found {before.dtype}")
    if not math.isfinite(strength):
        raise ValueError(f"rollback_: strength: expected a finite number; found {strength}")
    if strength != 1.0 and not weight.dtype.is_floating_point:
        raise TypeError(f"rollback_: expected strength 1 for {weight.dtype} weights; found {strength}")
    if score is not None and score.dtype is not torch.float32:
        raise TypeError(f"rollback_: score: expected float32; found {score.dtype}")
    if score is not None and score.shape != before.shape:
        raise ValueError(
            f"rollback_: score: expected the shape of before, {tuple(before.shape)}; found {tuple(score.shape)}"
        )
    if indices is not None:
        require_indices("rollback_", indices, before, "before")
    elif before.shape != weight.shape:
        raise ValueError(
            f"rollback_: before: expected the shape of weight, {tuple(weight.shape)}; found {tuple(before.shape)}"
        )


def _fake(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
) -> None:
    _check(weight, before, indices, score, strength)


@operator(_fake, mutates=("weight",))
def rollback_(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
) -> None:
    """Put chosen coordinates of `weight` back, in place and in one pass.

    A coordinate is chosen where `score` is None or score >= threshold (a NaN is not), and its bits are not those of
    `before` already. There, with w and b the weight now and before:

    - strength == 1: w becomes b, bit for bit: −0.0, NaN payloads and all.
    - else: w ← w − strength · (w − b), each operation in float32 (float64 for float64 weights) without fused
      multiply-add, the last result rounded to nearest even. Overflow is infinity, ±448 in float8_e4m3fn; a NaN result
      is the one NaN of the dtype.

    Every other coordinate keeps its bits.

    Args:
        weight: Any shape and strides; float32, bfloat16, float16, float8_e4m3fn, float8_e5m2, float64, and at strength
            1 also int8 to int64, uint8 and bool. Written in place.
        before: The dtype of `weight`; its shape, or with `indices` 1-D with one element an index.
        indices: int32 or int64, 1-D: row-major flat indices, each at most once (the caller's duty). None: all.
        score: float32, the shape of `before`.
        threshold: Taken as float32.
        strength: Finite; taken as float32 except for float64 weights. 1 puts back, 0 < s < 1 goes part of the way.

    Raises:
        TypeError: for dtypes other than these.
        ValueError: for shapes that do not fit, tensors on different devices or a strength that is not finite.
        IndexError: for an index outside `weight`; nothing is then written.

    Bytes moved, N coordinates of b bytes, m of them chosen: dense 2bN read, 4N for a score, bm written; at k indices of
    i bytes (i + 2b)k read, 4k for a score, bm written.

    Source: θ ← θ − s·δ at the conflict set, with δ = θ − θ_before; at s = 1 the exact case.
    """
    _check(weight, before, indices, score, strength)
    kernels = backend(__name__, weight, before, indices, score)
    if indices is not None:
        require_in_range("rollback_", indices, weight.numel())
    kernels.rollback_(weight, before, indices, score, threshold, strength)
