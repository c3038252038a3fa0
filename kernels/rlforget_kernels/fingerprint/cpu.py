"""`fingerprint` with numba: per tile two sums of 32 by 32 bit products, which the compiler turns into vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import jit, random_word
from rlforget_kernels.common.threads import map_slices
from rlforget_kernels.fingerprint.reference import TILE, element_words, tile_seed

_CPU = torch.device("cpu")
_TILE_BITS = np.int64(TILE.bit_length() - 1)


def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    bits = as_bits(weight)
    flat = bits.numpy().view(f"u{min(bits.element_size(), 4)}")
    first = offset * (2 if bits.element_size() == 8 else 1)
    words, seeds = _words_and_seeds()
    lanes = np.zeros(2, dtype=np.uint64)
    for _, part in map_slices(lambda start, stop: _sum(flat[start:stop], first + start, words, seeds), flat.size):
        lanes += part
    return torch.from_numpy(lanes.view(np.int64))


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    where = indices.contiguous().numpy()
    size = min(before_bits.element_size(), 4)
    before, after = (as_bits(bits).numpy().view(f"u{size}") for bits in (before_bits, after_bits))
    shift = np.uint64(before_bits.element_size() // 8)  # an element of 64 bits is two of 32
    words, seeds = _words_and_seeds()

    def work(start: int, stop: int) -> npt.NDArray[np.uint64]:
        inside = slice(start << shift, stop << shift)
        part: npt.NDArray[np.uint64] = _change(where[start:stop], before[inside], after[inside], shift, words, seeds)
        return part

    lanes = fingerprint.clone()
    for _, change in map_slices(work, where.size):
        lanes += torch.from_numpy(change.view(np.int64))
    return lanes


def _words_and_seeds() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """The element words [2, TILE] and the mixed seeds of the tile words [2]."""
    words = np.stack([element_words(lane, _CPU).numpy() for lane in range(2)]).astype(np.uint32)
    return words, np.array([tile_seed(lane) for lane in range(2)], dtype=np.uint64)


@jit
def _tile_word(seed, tile):
    """`reference.tile_words` of one tile number."""
    return random_word(seed, tile) | np.uint64(1)


@jit
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
        lanes[0] += sum_0 * _tile_word(seeds[0], tile)
        lanes[1] += sum_1 * _tile_word(seeds[1], tile)
        start += length
    return lanes


@jit
def _products(part, words_0, words_1):
    """Return the sums of `part` times either row of words, modulo 2**64."""
    sum_0, sum_1 = np.uint64(0), np.uint64(0)
    for j in range(part.size):
        value = np.uint64(part[j])
        sum_0 += value * np.uint64(words_0[j])
        sum_1 += value * np.uint64(words_1[j])
    return sum_0, sum_1


@jit
def _change(where, before, after, shift, words, seeds):
    """Sum the steps from `before` to `after`, each times the words of its index: uint64 [2].

    With `shift` 1 the sides hold two halves of each element that `where` lists, the lower first; with 0, the elements.
    """
    lanes = np.zeros(2, dtype=np.uint64)
    sum_0, sum_1, tile = np.uint64(0), np.uint64(0), np.int64(0)
    for j in range(np.uint64(before.size)):
        index = (np.int64(where[j >> shift]) << np.int64(shift)) | np.int64(j & shift)
        if index >> _TILE_BITS != tile:
            # Ascending indices mostly stay in their tile, whose words can wait until they leave it.
            lanes[0] += sum_0 * _tile_word(seeds[0], tile)
            lanes[1] += sum_1 * _tile_word(seeds[1], tile)
            sum_0, sum_1, tile = np.uint64(0), np.uint64(0), index >> _TILE_BITS
        place = np.uint64(index) & np.uint64(TILE - 1)
        step = np.uint64(after[j]) - np.uint64(before[j])
        sum_0 += step * np.uint64(words[0, place])
        sum_1 += step * np.uint64(words[1, place])
    lanes[0] += sum_0 * _tile_word(seeds[0], tile)
    lanes[1] += sum_1 * _tile_word(seeds[1], tile)
    return lanes
