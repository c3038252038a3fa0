"""`fingerprint` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, zero_extend
from rlforget_kernels.common.hashing import GOLDEN, mix64, mix64_int, random_words, shift_right, signed

TILE = 1024
"""Words of 32 bits that share a tile factor."""
PLACE_SEEDS = (1, 2)
TILE_SEEDS = (3, 4)


def foreach_fingerprint(weights: Sequence[Tensor], offsets: Sequence[int]) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    lanes = torch.zeros((len(weights), 2), dtype=torch.int64)
    for position, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
        bits = as_bits(weight)
        lanes[position] = weighted_sum(bits, torch.arange(offset, offset + bits.numel(), device=bits.device))
    return lanes


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    before, after = (weighted_sum(as_bits(bits), indices.long()) for bits in (before_bits, after_bits))
    return fingerprint + after - before


def weighted_sum(bits: Tensor, indices: Tensor) -> Tensor:
    """Sum the integer `bits` [k], each times the factors of its flat index (int64 [k]): int64 [2], one a lane."""
    words, places = words_of(bits, indices)
    tile, place = places // TILE, places % TILE
    lanes = [
        (tile_factors(tile, lane) * place_factors(lane, bits.device)[place] * words).sum(dtype=torch.int64)
        for lane in range(2)
    ]
    return torch.stack(lanes)


def words_of(bits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """What elements add to the words of 32 bits that the tensor's bytes spell, the first byte the lowest.

    Returns:
        What is added, and the positions of the words it is added to: int64, one an element, two for one of 64 bits.
    """
    size = bits.element_size()
    if size == 8:
        return zero_extend(bits.view(torch.int32)), torch.stack((2 * indices, 2 * indices + 1), dim=1).flatten()
    elements = 4 // size
    return zero_extend(bits) << (8 * size * (indices % elements)), indices // elements


@functools.cache
def place_factors(lane: int, device: torch.device) -> Tensor:
    """Return K of `lane`: int64 [TILE], each in [0, 2**32)."""
    return shift_right(random_words(PLACE_SEEDS[lane], 0, TILE, device), 32)


def tile_factors(tiles: Tensor, lane: int) -> Tensor:
    """Return T of `lane` for the tile numbers `tiles` (int64): int64, odd."""
    return mix64(tiles * signed(GOLDEN) + signed(tile_seed(lane))) | 1


@functools.cache
def tile_seed(lane: int) -> int:
    """Return the mixed seed of the tile factors of `lane`: an unsigned word."""
    return mix64_int(TILE_SEEDS[lane])
