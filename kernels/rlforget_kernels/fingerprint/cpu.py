"""`fingerprint` with numba: per tile two sums of 32 by 32 bit products, which the compiler turns into vectors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import jit, random_word
from rlforget_kernels.common.threads import map_pieces, map_slices
from rlforget_kernels.fingerprint.pieces import pieces
from rlforget_kernels.fingerprint.reference import TILE, place_factors, tile_seed

_CPU = torch.device("cpu")
_TILE_BITS = np.int64(TILE.bit_length() - 1)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def foreach_fingerprint(weights: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    cut = [
        piece
        for position, (weight, offset) in enumerate(zip(weights, offsets, strict=True))
        for piece in pieces(position, as_bits(weight), offset)
    ]
    arrays = [piece.bits.numpy().view(f"u{piece.bits.element_size()}") for piece in cut]
    all_factors = factors()

    def work(number: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
        part, first = arrays[number][start:stop], cut[number].first + start
        total: npt.NDArray[np.uint64]
        if cut[number].per_word == 1:
            total = sum_words(part, first, *all_factors)
        else:
            total = _sum_elements(part, first, *_narrow(part.itemsize), *all_factors)
        return total

    lanes = np.zeros((len(weights), 2), dtype=np.uint64)
    for (number, _, _), total in map_pieces(work, [array.size for array in arrays], TILE):
        lanes[cut[number].tensor] += total
    return torch.from_numpy(lanes.view(np.int64))


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    where = indices.contiguous().numpy()
    size = min(before_bits.element_size(), 4)
    before, after = (as_bits(bits).numpy().view(f"u{size}") for bits in (before_bits, after_bits))
    halves = np.int64(before_bits.element_size() // 8)  # an element of 64 bits is two of 32
    form = (halves, *_narrow(size), *factors())

    def work(start: int, stop: int) -> npt.NDArray[np.uint64]:
        inside = slice(start << halves, stop << halves)
        part: npt.NDArray[np.uint64] = _change(where[start:stop], before[inside], after[inside], *form)
        return part

    lanes = fingerprint.clone()
    for _, change in map_slices(work, where.size):
        lanes += torch.from_numpy(change.view(np.int64))
    return lanes


@functools.cache
def factors() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """The place factors of either lane [TILE], and the mixed seeds of the tile factors [2]."""
    first, second = (place_factors(lane, _CPU).numpy().astype(np.uint32) for lane in range(2))
    return first, second, np.array([tile_seed(lane) for lane in range(2)], dtype=np.uint64)


def _narrow(size: int) -> tuple[np.int64, np.int64]:
    """How far an element's index is shifted right for its word's, and its bits for each place in the word."""
    return np.int64((4 // size).bit_length() - 1), np.int64(8 * size)


@jit
def _tile_factor(seed, tile):
    """`reference.tile_factors` of one tile number."""
    return random_word(seed, tile) | np.uint64(1)


@jit
def sum_words(words, first, factors_0, factors_1, seeds):
    """Sum uint32 words that start at word number `first` of the whole tensor: uint64 [2]."""
    lanes = np.zeros(2, dtype=np.uint64)
    head = np.int64(min(-first % TILE, words.size))
    tiles = (words.size - head) // TILE
    tail = head + tiles * TILE
    _add_words(lanes, words[:head], first, factors_0, factors_1, seeds)
    _add_tiles(
        lanes,
        words[head:tail].view(np.uint64),
        (first + head) // TILE,
        factors_0.view(np.uint64),
        factors_1.view(np.uint64),
        seeds,
    )
    _add_words(lanes, words[tail:], first + tail, factors_0, factors_1, seeds)
    return lanes


@jit
def _add_words(lanes, words, first, factors_0, factors_1, seeds):
    """Add words that lie in one tile."""
    tile, place = first // TILE, first % TILE
    sum_0, sum_1 = np.uint64(0), np.uint64(0)
    for j in range(words.size):
        sum_0 += np.uint64(words[j]) * np.uint64(factors_0[place + j])
        sum_1 += np.uint64(words[j]) * np.uint64(factors_1[place + j])
    lanes[0] += sum_0 * _tile_factor(seeds[0], tile)
    lanes[1] += sum_1 * _tile_factor(seeds[1], tile)


@jit
def _add_tiles(lanes, pairs, tile, factors_0, factors_1, seeds):
    """Add whole tiles, the first of number `tile`, words and factors two at a time.

    So nothing has to be moved: processors multiply the low halves of 64 bits. (And a slice of an array costs as much as
    half a tile.)
    """
    count = np.uint64(TILE // 2)
    for start in range(np.uint64(0), np.uint64(pairs.size), count):
        sum_0, sum_1 = np.uint64(0), np.uint64(0)
        for j in range(count):
            pair = pairs[start + j]
            low, high = pair & _LOW, pair >> _32
            sum_0 += low * (factors_0[j] & _LOW) + high * (factors_0[j] >> _32)
            sum_1 += low * (factors_1[j] & _LOW) + high * (factors_1[j] >> _32)
        lanes[0] += sum_0 * _tile_factor(seeds[0], tile)
        lanes[1] += sum_1 * _tile_factor(seeds[1], tile)
        tile += 1


@jit
def _sum_elements(elements, first, down, width, factors_0, factors_1, seeds):
    """Sum unsigned elements of `width` bits from element number `first` on, 2**down of them a word: uint64 [2]."""
    lanes = np.zeros(2, dtype=np.uint64)
    for j in range(elements.size):
        index = np.int64(first) + np.int64(j)
        word, shift = index >> down, (index & ((np.int64(1) << down) - np.int64(1))) * width
        place, tile = np.uint64(word & np.int64(TILE - 1)), word >> _TILE_BITS
        value = np.uint64(elements[j]) << np.uint64(shift)
        lanes[0] += value * np.uint64(factors_0[place]) * _tile_factor(seeds[0], tile)
        lanes[1] += value * np.uint64(factors_1[place]) * _tile_factor(seeds[1], tile)
    return lanes


@jit
def _change(where, before, after, halves, down, width, factors_0, factors_1, seeds):
    """Sum the steps from `before` to `after`, each times the factors of its word: uint64 [2].

    With `halves` 1 the sides hold two halves of each element that `where` lists, the lower first; with 0, the elements,
    of which 2**down make a word, `width` bits each.
    """
    lanes = np.zeros(2, dtype=np.uint64)
    sum_0, sum_1, tile = np.uint64(0), np.uint64(0), np.int64(0)
    half = np.uint64(halves)
    within = (np.int64(1) << down) - np.int64(1)
    for j in range(np.uint64(before.size)):
        index = (np.int64(where[j >> half]) << halves) | np.int64(j & half)
        word = index >> down
        if word >> _TILE_BITS != tile:
            # Ascending indices mostly stay in their tile, whose factors can wait until they leave it.
            lanes[0] += sum_0 * _tile_factor(seeds[0], tile)
            lanes[1] += sum_1 * _tile_factor(seeds[1], tile)
            sum_0, sum_1, tile = np.uint64(0), np.uint64(0), word >> _TILE_BITS
        place = np.uint64(word) & np.uint64(TILE - 1)
        step = (np.uint64(after[j]) - np.uint64(before[j])) << np.uint64((index & within) * width)
        sum_0 += step * np.uint64(factors_0[place])
        sum_1 += step * np.uint64(factors_1[place])
    lanes[0] += sum_0 * _tile_factor(seeds[0], tile)
    lanes[1] += sum_1 * _tile_factor(seeds[1], tile)
    return lanes
