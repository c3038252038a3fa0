"""Sums of non-negative float64 that know no order: the same bits from any device, threads and grouping.

Every term is cut to a multiple of one power of two, which follows from the largest term alone; what is left are
integers, whose sums are exact. Of n terms the result lacks at most n times that power of two, and one rounding.

Source: pre-rounded, reproducible summation, J. Demmel and H. D. Nguyen, "Fast reproducible floating-point summation"
(2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

LEAST_EXPONENT = -900
"""Sums are of multiples of 2**(this - 62) at least, so that no scale leaves the range of float64."""
BIAS = 1023
MANTISSA = 52
_BITS = 62  # of a sum, beside its sign


def power_of_two(exponents: Tensor) -> Tensor:
    """2.0 to the power of `exponents` (integers, any shape, from -1022 to 1023): float64, exact."""
    return ((exponents.long() + BIAS) << MANTISSA).view(torch.float64)


def exponent_of(values: Tensor) -> Tensor:
    """The e of 2**e <= value < 2**(e + 1), at least `LEAST_EXPONENT`, of float64 `values` >= 0: int64; 1024 of inf."""
    return ((values.view(torch.int64) >> MANTISSA) - BIAS).clamp(min=LEAST_EXPONENT)


def segment_sums(values: Tensor, ends: Sequence[int]) -> Tensor:
    """Add up consecutive segments of float64 `values` [count], all >= 0.

    Args:
        values: The terms; where one is infinite, so is the sum.
        ends: The end of each segment, ascending; the first starts at 0.

    Returns:
        float64 [segments]. Of a segment of n terms it lacks at most n**2 * 2**-60 of the largest of them.
    """
    lengths = [end - start for start, end in pairwise((0, *ends))]
    device = values.device
    counts = torch.tensor(lengths, dtype=torch.int64).to(device, non_blocking=True)
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=len(values))
    largest = torch.zeros(len(lengths), dtype=torch.float64, device=device).scatter_reduce_(0, owners, values, "amax")
    exponents = exponent_of(largest)
    bits = torch.tensor([_BITS - length.bit_length() for length in lengths], dtype=torch.int64)
    shifts = bits.to(device, non_blocking=True) - 1 - exponents
    terms = power_of_two(shifts)[owners]
    del owners
    terms.mul_(values).masked_fill_(values.isinf(), 0)
    before = torch.zeros(len(values) + 1, dtype=torch.int64, device=device)
    before[1:] = terms
    before.cumsum_(0)
    sums = before[counts.cumsum(0)] - before[counts.cumsum(0) - counts]
    return torch.where(largest.isinf(), largest, sums.double() * power_of_two(-shifts))
