"""`conflict_score` with numba: scored a block at a time, and counted while the block is in the first cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import draw, specialized
from rlforget_kernels.common.disk_cache import watch_shared_sources
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.score_bits import LEADING_BINS
from rlforget_kernels.common.score_bits_cpu import LANES, count_leading
from rlforget_kernels.common.threads import Piece, in_order, runs
from rlforget_kernels.conflict_score import SCORES

_FISHER, _TAYLOR, _OPPOSED, _TWO_FISHER, _SUBSPACE, _MAGNITUDE, _RANDOM = range(len(SCORES))
_BLOCK = 1024
_UNUSED = np.empty(0, dtype=np.float32)


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
    # numpy's memory: it asks for large pages where torch does not, and a fresh page costs more than the scores on it.
    scores = [torch.from_numpy(np.empty(tuple(delta.shape), np.float32)) for delta in deltas]
    bits = [as_bits(one).numpy().view(np.uint32) for one in scores]
    read = [None] * len(deltas) if score == "random" else deltas  # it needs only to know how many there are
    inputs = [[_flat(tensor) for tensor in row] for row in zip(read, earlier, later, directions, strict=True)]
    numbers = (np.float32(damping), np.uint64(mix64_int(seed % 2**64)))
    firsts = [np.uint64(offset % 2**64) for offset in offsets]
    kernel = _score(score)

    def work(run: list[Piece]) -> npt.NDArray[np.int64]:
        counts = np.zeros((LEADING_BINS, LANES), dtype=np.int64)
        for position, start, stop in run:
            kernel(*inputs[position], *numbers, firsts[position], bits[position], counts, start, stop)
        return counts

    histogram = np.zeros(LEADING_BINS, dtype=np.int64)
    for counts in in_order(work, runs([one.size for one in bits], _BLOCK)):
        histogram += counts.sum(axis=1)
    return scores, torch.from_numpy(histogram)


def _flat(tensor: Tensor | None) -> npt.NDArray[np.float32]:
    return _UNUSED if tensor is None else as_bits(tensor).numpy().view(np.float32)


@specialized
def _score(name: str) -> Any:
    kind = list(SCORES).index(name)

    # In numpy's manner: x / 0 is infinity and no exception.
    @watch_shared_sources
    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def score(delta, earlier, later, direction, damping, mixed_seed, offset, scores, counts, start, stop):
        noise, bins = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint16)
        for block in range(np.uint64(start), np.uint64(stop), np.uint64(_BLOCK)):
            end = min(block + np.uint64(_BLOCK), np.uint64(stop))
            if kind == _RANDOM:
                draw(noise, mixed_seed, offset + block)
            for i in range(block, end):
                if kind == _MAGNITUDE:
                    value = abs(delta[i])
                elif kind == _RANDOM:
                    value = np.float32(noise[i - block] >> np.uint32(8)) * np.float32(2.0**-24)
                elif kind == _OPPOSED:
                    value = -(direction[i] * delta[i])
                elif kind == _SUBSPACE:
                    value = direction[i] * delta[i]
                else:
                    value = earlier[i] * delta[i] * delta[i]
                    if kind == _TAYLOR:
                        value = direction[i] * delta[i] + np.float32(0.5) * value
                    elif kind == _TWO_FISHER:
                        damped = later[i] + damping
                        nothing = (value == np.float32(0)) & (damped == np.float32(0))
                        value = np.float32(0) if nothing else value / damped
                scores[i] = np.uint32(0) if value <= np.float32(0) else result_bits(value)
            count_leading(scores, block, end, bins, counts)

    return score
