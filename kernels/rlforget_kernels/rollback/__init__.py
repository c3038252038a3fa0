"""`rollback_`: put coordinates of a weight back to what they were, wholly or by a strength, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.checks import require_all_in_range, require_indices
from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.hashing import consecutive


def _check(
    weight: Tensor, before: Tensor, indices: Tensor | None, score: Tensor | None, strength: float, by_share: bool
) -> None:
    bits_dtype(weight.dtype)
    if before.dtype != weight.dtype:
        raise TypeError(f"rollback_: before: expected the dtype of weight, {weight.dtype}; found {before.dtype}")
    if not math.isfinite(strength):
        raise ValueError(f"rollback_: strength: expected a finite number; found {strength}")
    if (strength != 1.0 or by_share) and not weight.dtype.is_floating_point:
        found = "shares" if by_share else strength
        raise TypeError(f"rollback_: expected strength 1 for {weight.dtype} weights; found {found}")
    if by_share and score is None:
        raise ValueError("rollback_: score: expected the share of each coordinate, with by_share; found none")
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


def _run(
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
    for arguments in zip(weights, before, indices, scores, strict=True):
        _check(*arguments, strength, by_share)
    if not weights:
        return
    kernels = backend(__name__, *weights, *before, *indices, *scores)
    require_all_in_range("rollback_", indices, [weight.numel() for weight in weights])
    kernels.foreach_rollback_(weights, before, indices, scores, threshold, strength, seed, offsets, by_share)


def _fake(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
    seed: int | None = None,
    offset: int = 0,
    by_share: bool = False,
) -> None:
    _check(weight, before, indices, score, strength, by_share)


@operator(_fake, mutates=("weight",))
def rollback_(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
    seed: int | None = None,
    offset: int = 0,
    by_share: bool = False,
) -> None:
    """Put chosen coordinates of `weight` back, in place and in one pass.

    A coordinate is chosen where `score` is None or score >= threshold (a NaN is not), and its bits are not those of
    `before` already. There, with w and b the weight now and before:

    - strength == 1: w becomes b, bit for bit: −0.0, NaN payloads and all.
    - else: w ← w − strength · (w − b), each operation in float32 (float64 for float64 weights) without fused
      multiply-add, the last result rounded as `subtract_` rounds: to nearest even, or with a seed stochastically.
      Overflow is infinity, ±448 in float8_e4m3fn; a NaN result is the one NaN of the dtype.

    With `by_share` the score chooses nothing: it is the share of each coordinate, which goes strength · share of the
    way, the product taken in float32 (float64 for float64 weights). A product of 1 puts the old bits back, one of 0
    keeps the new ones.

    Every other coordinate keeps its bits.

    Args:
        weight: Any shape and strides; float32, bfloat16, float16, float8_e4m3fn, float8_e5m2, float64, and at strength
            1 also int8 to int64, uint8 and bool. Written in place.
        before: The dtype of `weight`; its shape, or with `indices` 1-D with one element an index.
        indices: int32 or int64, 1-D: row-major flat indices, each at most once (the caller's duty). None: all.
        score: float32, the shape of `before`; with `by_share` the shares.
        threshold: Taken as float32.
        strength: Finite; taken as float32 except for float64 weights. 1 puts back, 0 < s < 1 goes part of the way.
        seed: Any int64, for stochastic rounding: the random bits of coordinate i of `weight`, gathered or not, are the
            leading 32 of `hashing.random_words(seed, offset + i)`. None: to nearest even.
        offset: Flat index of the first coordinate: of a shard in its tensor, or of the tensor in the model.
        by_share: Whether `score` holds shares. For weights of floats.

    Raises:
        TypeError: for dtypes other than these.
        ValueError: for shapes that do not fit, shares that are missing, tensors on different devices or a strength that
            is not finite.
        IndexError: for an index outside `weight`; nothing is then written.

    Bytes moved, N coordinates of b bytes, m of them chosen: dense 2bN read, 4N for a score, bm written; at k indices of
    i bytes (i + 2b)k read, 4k for a score, bm written.

    Source: θ ← θ − s·δ at the conflict set, with δ = θ − θ_before; at s = 1 the exact case; with a share a coordinate,
    the soft rule. Stochastic rounding as in
    Gupta et al. 2015, arXiv:1502.02551.
    """
    _run([weight], [before], [indices], [score], threshold, strength, seed, [offset], by_share)


def _lists(
    weights: list[Tensor],
    before: list[Tensor],
    indices: list[Tensor | None],
    scores: list[Tensor | None],
    offsets: list[int] | None,
) -> tuple[list[Tensor | None], list[Tensor | None], list[int]]:
    """What stands for the lists that are left empty, and for no offsets.

    Raises:
        ValueError: for lists of different lengths.
    """
    offsets = consecutive(weights) if offsets is None else offsets
    nothing: list[Tensor | None] = [None] * len(weights)
    indices, scores = indices or nothing, scores or nothing
    lengths = [len(weights), len(before), len(indices), len(scores), len(offsets)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"foreach_rollback_: expected weights, before, indices, scores and offsets of one length; found {lengths}"
        )
    return indices, scores, offsets


def _fake_list(
    weights: list[Tensor],
    before: list[Tensor],
    indices: list[Tensor | None],
    scores: list[Tensor | None],
    threshold: float = 0.0,
    strength: float = 1.0,
    seed: int | None = None,
    offsets: list[int] | None = None,
    by_share: bool = False,
) -> None:
    indices, scores, _ = _lists(weights, before, indices, scores, offsets)
    for arguments in zip(weights, before, indices, scores, strict=True):
        _check(*arguments, strength, by_share)


@operator(_fake_list, mutates=("weights",))
def foreach_rollback_(
    weights: list[Tensor],
    before: list[Tensor],
    indices: list[Tensor | None],
    scores: list[Tensor | None],
    threshold: float = 0.0,
    strength: float = 1.0,
    seed: int | None = None,
    offsets: list[int] | None = None,
    by_share: bool = False,
) -> None:
    """Do what `rollback_` does for every weight of a list, in one launch group or one parallel region.

    Args:
        weights: Tensors on one device, of any mix of shapes, dtypes and strides. Written in place.
        before: One a weight, as for `rollback_`.
        indices: One a weight, or empty for all of every weight.
        scores: One a weight, or empty for none.
        threshold: For all.
        strength: For all.
        seed: For all.
        offsets: One a weight. None: each weight follows on the one before it in the list, the first at 0.
        by_share: For all.

    Raises:
        TypeError: as `rollback_`.
        ValueError: as `rollback_`, and for lists of different lengths.
        IndexError: as `rollback_`. In every case nothing is written.

    Bytes moved: see `rollback_`.
    """
    indices, scores, offsets = _lists(weights, before, indices, scores, offsets)
    _run(weights, before, indices, scores, threshold, strength, seed, offsets, by_share)
