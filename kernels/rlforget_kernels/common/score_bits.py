"""How scores are ordered and counted: as the integers that the bits of non-negative floats spell.

A first histogram counts scores by the 12 bits behind the sign: the exponent and four bits of the mantissa. A second
one counts those of one such bin by the 19 bits that follow, and so finds a score to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.rounding import INFINITY, MAGNITUDE, NAN

TRAILING_BITS = 19
TRAILING_BINS = 1 << TRAILING_BITS
LEADING_BINS = 1 << (31 - TRAILING_BITS)
ROW = 512
"""Bins that are summed before one of them is looked for: a divisor of `TRAILING_BINS`."""

NEGATIVE = 0x7FFF0000
"""What stands for a negative score: above every number."""

INFINITY_BIN = INFINITY >> TRAILING_BITS
"""The first bin of the first histogram that counts no finite score."""


def ordered(score: Tensor) -> Tensor:
    """Return int32 codes in the order of float32 scores: −0.0 as 0, NaN as the one NaN, what is negative `NEGATIVE`."""
    bits = score.view(torch.int32)
    magnitude = bits & MAGNITUDE
    code = torch.where((bits < 0) & (magnitude > 0), NEGATIVE, magnitude)
    return torch.where(magnitude > INFINITY, NAN, code).to(torch.int32)


def leading_counts(score: Tensor) -> Tensor:
    """Count scores by their leading bits: int64 [LEADING_BINS]."""
    return torch.bincount(ordered(score.reshape(-1)) >> TRAILING_BITS, minlength=LEADING_BINS)
