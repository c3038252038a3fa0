"""`rollback_` with numba: blocks that are equal already are only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.bfloat16_move_cpu import MOVED, move
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import (
    draw,
    draw_at,
    inlined,
    jit,
    round_drawn,
    round_nearest,
    specialized,
    widen,
)
from rlforget_kernels.common.cpu_vectors import LANES, differences
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.rounding import FLOAT_FORMAT, FloatFormat
from rlforget_kernels.common.threads import map_pieces

_BLOCK = LANES  # elements looked at together
_NO_INDICES = np.empty(0, dtype=np.int32)
_NO_SCORE = np.empty(0, dtype=np.float32)


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
    now = [one.numpy().view(f"u{one.element_size()}") for one in bits]
    old = [as_bits(one).numpy().view(f"u{one.element_size()}") for one in before]
    where = [_NO_INDICES if one is None else one.contiguous().numpy() for one in indices]
    score = [_NO_SCORE if one is None else as_bits(one).view(torch.float32).numpy() for one in scores]
    firsts = [np.uint64(offset % 2**64) for offset in offsets]
    kernels = [
        _kernel(weight.dtype, index is not None, one is not None, by_share, strength, seed)
        for weight, index, one in zip(weights, indices, scores, strict=True)
    ]
    numbers = (np.float32(threshold), strength, np.uint64(mix64_int((seed or 0) % 2**64)))

    def work(k: int, start: int, stop: int) -> None:
        kernels[k](now[k], old[k], where[k], score[k], *numbers, firsts[k], start, stop)

    map_pieces(work, [one.size for one in old], _BLOCK)
    for weight, one in zip(weights, bits, strict=True):
        write_back(weight, one)


def _kernel(dtype: torch.dtype, gathered: bool, scored: bool, by_share: bool, strength: float, seed: int | None) -> Any:
    if strength == 1.0 and not by_share:
        return _whole_gathered(scored) if gathered else _whole(scored)
    if dtype is torch.float64:
        return _part_float64(gathered, scored, by_share)
    if dtype is torch.bfloat16 and not (gathered or scored) and seed is None:
        return _part_bfloat16()
    chance = seed is not None and dtype is not torch.float32
    return (_part_gathered if gathered else _part)(FLOAT_FORMAT[dtype], scored, by_share, chance)


@inlined
def _put_back(now, old, scores, threshold, scored, first, count):
    """Put one block back."""
    for i in range(np.uint64(count)):
        kept = scored and not scores[first + i] >= threshold
        now[first + i] = now[first + i] if kept else old[first + i]


@inlined
def _move(now, old, scores, threshold, choice, strength, layout, chance, noise, mixed_seed, offset, first, count):
    """Move one block part of the way; `choice` says whether there are scores, and whether they are shares."""
    scored, by_share = choice
    if chance:
        draw(noise, mixed_seed, offset + first)
    for i in range(np.uint64(count)):
        step = strength * scores[first + i] if by_share else strength
        code = _between(now[first + i], old[first + i], step, layout, chance, noise[i])
        if by_share:
            code = old[first + i] if step == 1 else code
        kept = now[first + i] == old[first + i] or _left_out(scores, first + i, threshold, scored, by_share, step)
        now[first + i] = now[first + i] if kept else code


@inlined
def _left_out(scores, place, threshold, scored, by_share, step):
    """Whether the score at `place` keeps its coordinate from being written."""
    return step == 0 if by_share else scored and not scores[place] >= threshold


@inlined
def _between(now, old, step, layout, chance, noise):
    """The code of now − step · (now − old)."""
    value = widen(now, layout[0], layout[1])
    moved = value - step * (value - widen(old, layout[0], layout[1]))
    return round_drawn(moved, layout, noise) if chance else round_nearest(moved, layout)


@specialized
def _whole(scored: bool) -> Any:
    @jit
    def put_back(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        block, end = np.uint64(start), np.uint64(stop)
        while block + np.uint64(_BLOCK) <= end:
            if differences(now, old, block) != 0:
                _put_back(now, old, scores, threshold, scored, block, _BLOCK)
            block += np.uint64(_BLOCK)
        if block < end:
            _put_back(now, old, scores, threshold, scored, block, end - block)

    return put_back


@specialized
def _whole_gathered(scored: bool) -> Any:
    @jit
    def put_back(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        for j in range(np.uint64(start), np.uint64(stop)):
            if not scored or scores[j] >= threshold:
                now[np.uint64(indices[j])] = old[j]

    return put_back


@specialized
def _part(layout: FloatFormat, scored: bool, by_share: bool, chance: bool) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def interpolate(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        form, choice = (exponent, mantissa, overflow, nan), (scored, by_share)
        part, noise = np.float32(strength), np.empty(_BLOCK, np.uint32)
        block, end = np.uint64(start), np.uint64(stop)
        while block + np.uint64(_BLOCK) <= end:
            if differences(now, old, block) != 0:
                _move(now, old, scores, threshold, choice, part, form, chance, noise, mixed_seed, offset, block, _BLOCK)
            block += np.uint64(_BLOCK)
        if block < end:
            rest = end - block
            _move(now, old, scores, threshold, choice, part, form, chance, noise, mixed_seed, offset, block, rest)

    return interpolate


@specialized
def _part_bfloat16() -> Any:
    exponent, mantissa, overflow, nan = FLOAT_FORMAT[torch.bfloat16]

    @jit
    def interpolate(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        form = (exponent, mantissa, overflow, nan)
        share, noise = np.float32(strength), np.empty(MOVED, np.uint32)
        block, end = np.uint64(start), np.uint64(stop)
        while block + np.uint64(MOVED) <= end:
            move(now, old, block, share)
            block += np.uint64(MOVED)
        if block < end:
            rest = end - block
            _move(
                now, old, scores, threshold, (False, False), share, form, False, noise, mixed_seed, offset, block, rest
            )

    return interpolate


@specialized
def _part_gathered(layout: FloatFormat, scored: bool, by_share: bool, chance: bool) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def interpolate(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        form, part = (exponent, mantissa, overflow, nan), np.float32(strength)
        noise, found = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, now.dtype)
        for block in range(np.uint64(start), np.uint64(stop), np.uint64(_BLOCK)):
            end = min(block + np.uint64(_BLOCK), np.uint64(stop))
            for j in range(block, end):
                found[j - block] = now[np.uint64(indices[j])]
            if chance:
                draw_at(noise, mixed_seed, offset, indices[block:end])
            for j in range(block, end):
                step = part * scores[j] if by_share else part
                code = _between(found[j - block], old[j], step, form, chance, noise[j - block])
                if by_share:
                    code = old[j] if step == 1 else code
                kept = found[j - block] == old[j] or _left_out(scores, j, threshold, scored, by_share, step)
                found[j - block] = found[j - block] if kept else code
            for j in range(block, end):
                now[np.uint64(indices[j])] = found[j - block]

    return interpolate


@specialized
def _part_float64(gathered: bool, scored: bool, by_share: bool) -> Any:
    @jit
    def interpolate(now, old, indices, scores, threshold, strength, mixed_seed, offset, start, stop):
        for j in range(np.uint64(start), np.uint64(stop)):
            i = np.uint64(indices[j]) if gathered else j
            step = np.float64(strength)
            if by_share:
                step *= np.float64(scores[j])
            if now[i] != old[j] and not _left_out(scores, j, threshold, scored, by_share, step):
                value = np.uint64(now[i]).view(np.float64)
                goal = np.uint64(old[j]).view(np.float64)
                code = result_bits64(value - step * (value - goal))
                now[i] = old[j] if step == 1 else code

    return interpolate
