"""`rollback_` with numba."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import jit, round_nearest, widen
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.threads import map_slices

_NO_INDICES = np.empty(0, dtype=np.int32)
_NO_SCORE = np.empty(0, dtype=np.float32)


def rollback_(
    weight: Tensor,
    before: Tensor,
    indices: Tensor | None = None,
    score: Tensor | None = None,
    threshold: float = 0.0,
    strength: float = 1.0,
) -> None:
    """See `rlforget_kernels.rollback`."""
    bits = as_bits(weight)
    unsigned = f"u{bits.element_size()}"
    now, old = bits.numpy().view(unsigned), as_bits(before).numpy().view(unsigned)
    where = _NO_INDICES if indices is None else indices.contiguous().numpy()
    scores = _NO_SCORE if score is None else as_bits(score).view(torch.float32).numpy()
    chosen = (where, indices is not None, scores, np.float32(threshold), score is not None)

    def work(start: int, stop: int) -> None:
        if strength == 1.0:
            _put_back(now, old, *chosen, start, stop)
        elif weight.dtype is torch.float64:
            _interpolate64(now, old, np.float64(strength), *chosen, start, stop)
        else:
            _interpolate(now, old, np.float32(strength), tuple(FLOAT_FORMAT[weight.dtype]), *chosen, start, stop)

    map_slices(work, old.size)
    write_back(weight, bits)


@jit
def _put_back(now, old, indices, gathered, scores, threshold, scored, start, stop):
    """Copy the bits `old` at [start, stop) to where they belong in `now`."""
    for j in range(np.uint64(start), np.uint64(stop)):
        i = np.uint64(indices[j]) if gathered else j
        if now[i] != old[j] and (not scored or scores[j] >= threshold):
            now[i] = old[j]


@jit
def _interpolate(now, old, strength, layout, indices, gathered, scores, threshold, scored, start, stop):
    """Go part of the way, in float32; `now` and `old` are the codes of floats of `layout`."""
    for j in range(np.uint64(start), np.uint64(stop)):
        i = np.uint64(indices[j]) if gathered else j
        if now[i] != old[j] and (not scored or scores[j] >= threshold):
            value = widen(now[i], layout[0], layout[1])
            moved = value - strength * (value - widen(old[j], layout[0], layout[1]))
            now[i] = round_nearest(moved, layout)


@jit
def _interpolate64(now, old, strength, indices, gathered, scores, threshold, scored, start, stop):
    """Go part of the way, in float64; `now` and `old` are bits."""
    for j in range(np.uint64(start), np.uint64(stop)):
        i = np.uint64(indices[j]) if gathered else j
        if now[i] != old[j] and (not scored or scores[j] >= threshold):
            value = np.uint64(now[i]).view(np.float64)
            now[i] = result_bits64(value - strength * (value - np.uint64(old[j]).view(np.float64)))
