"""`fingerprint` with numba: per tile two sums of 32 by 32 bit products, which the compiler turns into vectors."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import random_word
from rlforget_kernels.common.threads import map_slices
from rlforget_kernels.fingerprint.reference import TILE, element_words, tile_seed

_CPU = torch.device("cpu")


def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    bits = as_bits(weight)
    flat = bits.numpy().view(f"u{min(bits.element_size(), 4)}")
    first = offset * (2 if bits.element_size() == 8 else 1)
    words = np.stack([element_words(lane, _CPU).numpy() for lane in range(2)]).astype(np.uint32)
    seeds = np.array([tile_seed(lane) for lane in range(2)], dtype=np.uint64)
    lanes = np.zeros(2, dtype=np.uint64)
    for _, part in map_slices(lambda start, stop: _sum(flat[start:stop], first + start, words, seeds), flat.size):
        lanes += part
    return torch.from_numpy(lanes.view(np.int64))


@numba.njit(nogil=True, cache=True)
def _sum(flat, first, words, seeds):
    """Sum elements that start at index `first` of the whole tensor: uint64 [2]."""
    lanes = np.zeros(2, dtype=np.uint64)
    words_0, words_1 = words[0], words[1]
    start = 0
    while start < flat.size:
        tile = (first + start) // TILE
        place = (first + start) % TILE
        length = min(TILE - place, flat.size - start)
        part = flat[start : start + length]
        sum_0, sum_1 = _products(part, words_0[place : place + length], words_1[place : place + length])
        lanes[0] += sum_0 * (random_word(seeds[0], tile) | np.uint64(1))
        lanes[1] += sum_1 * (random_word(seeds[1], tile) | np.uint64(1))
        start += length
    return lanes


@numba.njit(nogil=True, cache=True)
def _products(part, words_0, words_1):
    """Return the sums of `part` times either row of words, modulo 2**64."""
    sum_0, sum_1 = np.uint64(0), np.uint64(0)
    for j in range(part.size):
        value = np.uint64(part[j])
        sum_0 += value * np.uint64(words_0[j])
        sum_1 += value * np.uint64(words_1[j])
    return sum_0, sum_1
