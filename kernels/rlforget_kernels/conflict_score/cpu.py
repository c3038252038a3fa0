"""`conflict_score` with numba."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import jit, random_word
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.threads import map_slices
from rlforget_kernels.conflict_score import SCORES

_KIND = {name: kind for kind, name in enumerate(SCORES)}
_FISHER, _TAYLOR, _OPPOSED, _TWO_FISHER, _SUBSPACE, _MAGNITUDE, _RANDOM = range(len(SCORES))
_UNUSED = np.empty(0, dtype=np.float32)


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
    scores = torch.empty(delta.shape, dtype=torch.float32)
    bits = as_bits(scores).numpy().view(np.uint32)
    flat = [_UNUSED if t is None else as_bits(t).numpy().view(np.float32) for t in (delta, earlier, later, direction)]
    mixed_seed, first = np.uint64(mix64_int(seed % 2**64)), np.uint64(offset % 2**64)

    def work(start: int, stop: int) -> np.ndarray:
        histogram = np.zeros(1 << 15, dtype=np.int64)
        _score(_KIND[score], *flat, np.float32(damping), mixed_seed, first, bits, histogram, start, stop)
        return histogram

    histogram = np.zeros(1 << 15, dtype=np.int64)
    for _, part in map_slices(work, bits.size):
        histogram += part
    return scores, torch.from_numpy(histogram)


@jit
def _score(kind, delta, earlier, later, direction, damping, mixed_seed, offset, scores, histogram, start, stop):
    """Score the coordinates of [start, stop) as bits, and count them."""
    for i in range(np.uint64(start), np.uint64(stop)):
        value = np.float32(0)
        if kind == _MAGNITUDE:
            value = abs(delta[i])
        elif kind == _RANDOM:
            value = np.float32(random_word(mixed_seed, offset + i) >> np.uint64(40)) * np.float32(2.0**-24)
        elif kind == _OPPOSED:
            value = -(direction[i] * delta[i])
        elif kind == _SUBSPACE:
            value = direction[i] * delta[i]
        else:
            value = earlier[i] * delta[i] * delta[i]
            if kind == _TAYLOR:
                value = direction[i] * delta[i] + np.float32(0.5) * value
            elif kind == _TWO_FISHER:
                value = _ratio(value, later[i] + damping)
        bits = np.uint32(0) if value <= np.float32(0) else result_bits(value)
        scores[i] = bits
        histogram[bits >> np.uint32(16)] += 1


@jit
def _ratio(numerator, denominator):
    """numerator / denominator, 0/0 being 0; division by zero is infinity and no exception."""
    if numerator == np.float32(0) and denominator == np.float32(0):
        return np.float32(0)
    return np.float32(np.divide(numerator, denominator))
