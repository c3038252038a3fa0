"""`fingerprint` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, zero_extend
from rlforget_kernels.common.hashing import GOLDEN, mix64, mix64_int, random_words, shift_right, signed

TILE = 1024
"""Elements that share a tile word."""
ELEMENT_SEEDS = (1, 2)
TILE_SEEDS = (3, 4)


def fingerprint(weight: Tensor, offset: int = 0) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    bits = as_bits(weight)
    return weighted_sum(bits, torch.arange(offset, offset + bits.numel(), device=bits.device))


def fingerprint_after_patch(fingerprint: Tensor, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> Tensor:
    """See `rlforget_kernels.fingerprint`."""
    before, after = (weighted_sum(as_bits(bits), indices.long()) for bits in (before_bits, after_bits))
    return fingerprint + after - before


def weighted_sum(bits: Tensor, indices: Tensor) -> Tensor:
    """Sum the integer `bits` [k], each times the words of its flat index (int64 [k]): int64 [2], one a lane."""
    bits, indices = halves(bits, indices)
    words = zero_extend(bits)
    tile, place = indices // TILE, indices % TILE
    lanes = [
        (tile_words(tile, lane) * element_words(lane, bits.device)[place] * words).sum(dtype=torch.int64)
        for lane in range(2)
    ]
    return torch.stack(lanes)


def halves(bits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Split 64-bit elements into two of 32 bits, the lower first, with indices of their own; leave others."""
    if bits.element_size() < 8:
        return bits, indices
    return bits.view(torch.int32), torch.stack((2 * indices, 2 * indices + 1), dim=1).flatten()


@functools.cache
def element_words(lane: int, device: torch.device) -> Tensor:
    """Return K of `lane`: int64 [TILE], each in [0, 2**32)."""
    return shift_right(random_words(ELEMENT_SEEDS[lane], 0, TILE, device), 32)


def tile_words(tiles: Tensor, lane: int) -> Tensor:
    """Return T of `lane` for the tile numbers `tiles` (int64): int64, odd."""
    return mix64(tiles * signed(GOLDEN) + signed(tile_seed(lane))) | 1


@functools.cache
def tile_seed(lane: int) -> int:
    """Return the mixed seed of the tile words of `lane`: an unsigned word."""
    return mix64_int(TILE_SEEDS[lane])
