"""`delta_stats` in plain torch: the truth that the backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.exact_sums import BIAS, MANTISSA, exponent_of, power_of_two, segment_sums

ABSOLUTE_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-3
TILE = 4096
"""Coordinates whose changes are added up together."""
PART = 256
"""Changes of a tile that are added at a time, as integers."""
SUM_BITS = 50
"""Bits that the largest |d| of a part has as an integer; its square has as many and two more."""
EXPONENT_SHIFT = BIAS - 127
"""What lies between the exponents of float64 and the bins."""


def delta_stats(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.delta_stats`."""
    old, new = as_bits(before), as_bits(after)
    where = (old != new).nonzero().squeeze(1)
    old, new = old[where].view(before.dtype), new[where].view(before.dtype)
    a, b = working_values(old), working_values(new)
    finite = a.isfinite() & b.isfinite()
    size = torch.where(finite, (b - a).abs(), 0)
    absolute, relative = (torch.tensor(bound, dtype=a.dtype) for bound in (ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE))
    largest_side = torch.where(finite, torch.maximum(a.abs(), b.abs()), 0)
    masks = (
        torch.ones_like(finite),
        ~finite | (size > absolute),
        ~finite | (size > relative * largest_side),
        ~finite,
        *(of_side for side in (a, b) for of_side in (side.isnan(), side.isinf())),
    )
    counts = torch.stack([mask.sum() for mask in masks])
    size = size.double()
    total, squares = (segment_sums(sums, [len(sums)]) for sums in _tile_sums(size, where, before.numel()))
    largest = size.max() if len(size) else size.new_zeros(())
    exponents = ((size.view(torch.int64) >> MANTISSA) - EXPONENT_SHIFT).clamp(0, 255)
    steps = _bit_length(rank(new) - rank(old), rank(new) < rank(old))
    return (
        counts,
        torch.cat([total, squares, largest.view(1)]),
        exponents[finite].bincount(minlength=256),
        steps[finite].bincount(minlength=65),
    )


def working_values(values: Tensor) -> Tensor:
    """The values in the dtype that differences are computed in: float32, or float64 of float64 and integers."""
    narrow = values.dtype.is_floating_point and values.dtype is not torch.float64
    return values.to(torch.float32 if narrow else torch.float64)


def rank(values: Tensor) -> Tensor:
    """int64 in the order of the values, neighbours one apart; both zeros are 0."""
    if not values.dtype.is_floating_point:
        return values.long()
    bits = as_bits(values)
    magnitude = bits.long() & torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, -magnitude, magnitude)


def _bit_length(difference: Tensor, negative: Tensor) -> Tensor:
    """Bits of |difference|, where a difference of two int64 has wrapped around and stands for an unsigned word."""
    word = torch.where(negative, -difference, difference)
    upper, lower = (word >> 32) & 0xFFFFFFFF, word & 0xFFFFFFFF
    halves = torch.where(upper > 0, upper, lower).double()
    return torch.where(word == 0, 0, halves.frexp().exponent + 32 * (upper > 0))


def _tile_sums(size: Tensor, where: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """The sums of |d| and of d**2 of each tile: float64 [tiles]."""
    tiles, parts = -(-numel // TILE), TILE // PART
    tile = where // TILE
    place = torch.arange(len(where)) - torch.searchsorted(tile, tile)  # among the changes of the tile
    part = tile * parts + place // PART
    largest = torch.zeros(tiles * parts, dtype=torch.float64).scatter_reduce_(0, part, size, "amax")
    infinite = largest.isinf()
    size = torch.where(infinite[part], 0.0, size)
    exponent = exponent_of(largest)
    terms = (size * power_of_two(SUM_BITS - exponent)[part] + 0.5).long()
    halves = size * power_of_two(SUM_BITS // 2 - exponent)[part]
    square_terms = (halves * halves + 0.5).long()
    scale = power_of_two(exponent - SUM_BITS // 2)
    sums = torch.zeros_like(exponent).index_add_(0, part, terms).double() * power_of_two(exponent - SUM_BITS)
    squares = torch.zeros_like(exponent).index_add_(0, part, square_terms).double() * scale * scale
    return _added(torch.where(infinite, largest, sums), parts), _added(torch.where(infinite, largest, squares), parts)


def _added(sums: Tensor, parts: int) -> Tensor:
    """Add the parts of each tile in order: float64 [tiles]."""
    total = torch.zeros(len(sums) // parts, dtype=torch.float64)
    for column in sums.view(-1, parts).T:
        total = total + column
    return total
