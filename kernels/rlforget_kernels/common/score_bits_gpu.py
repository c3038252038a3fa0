"""The codes of `score_bits`, and the counting of their leading bits, for Triton kernels.

Every program has a row of counts of its own, that no other waits for; the rows are summed afterwards. Where Triton's
histogram is one in shared memory, a program counts in registers by it, and writes to its row once. Where it is not, it
would take 128 population counts a score and more registers than there are: there each score is an atomic on the row,
which stays in the level 2 cache. Zeros, which may be nearly all scores, are never counted but are the rest. The sums
are of integers, so in no order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common import score_bits
from rlforget_kernels.common.gpu_math import INFINITY, MAGNITUDE, NAN

TRAILING_BITS = tl.constexpr(score_bits.TRAILING_BITS)
TRAILING_BINS = tl.constexpr(score_bits.TRAILING_BINS)
LEADING_BINS = tl.constexpr(score_bits.LEADING_BINS)
_NEGATIVE = tl.constexpr(score_bits.NEGATIVE)

IN_SHARED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
"""Whether this Triton's histogram of so many bins is one in shared memory."""
FORMS = (True, False) if IN_SHARED else (False,)
"""The values of a kernel's IN_SHARED that this Triton compiles well."""

_RESIDENT = 4  # programs a multiprocessor holds at a time, by their registers and shared memory
_INTERPRETED = 3


def counting_programs(tiles: int, device: torch.device) -> int:
    """Return how many programs share `tiles` tiles: as many as a device runs at a time."""
    if device.type != "cuda":
        return min(tiles, _INTERPRETED)
    return min(tiles, _RESIDENT * torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def ordered(bits):
    """`score_bits.ordered` of the int32 bits of a block of scores."""
    magnitude = bits & MAGNITUDE
    code = tl.where((bits < 0) & (magnitude > 0), _NEGATIVE, magnitude)
    return tl.where(magnitude > INFINITY, NAN, code)


def counted(in_shared: bool) -> str:
    """Return the label of a kernel's compilation that counts so."""
    return f"counted in {'shared' if in_shared else 'global'} memory"


def new_rows(programs: int, device: torch.device) -> Tensor:
    """Return the rows in which so many programs count: int32 [programs, LEADING_BINS]."""
    return torch.zeros((programs, score_bits.LEADING_BINS), dtype=torch.int32, device=device)


def summed(launches: Sequence[Tensor], scores: int, device: torch.device) -> Tensor:
    """Return the histogram of `scores` scores from the rows of each launch: int64 [LEADING_BINS]."""
    histogram = torch.zeros(score_bits.LEADING_BINS, dtype=torch.int64, device=device)
    for rows in launches:
        histogram += rows.sum(0)
    histogram[0] = scores - histogram[1:].sum()
    return histogram


@triton.jit
def count_leading(row_ptr, counts, codes, IN_SHARED: tl.constexpr):
    """Count a block of codes by their leading bits: in `counts`, which is returned, or in the program's row."""
    bins = codes >> TRAILING_BITS
    if IN_SHARED:
        counts += tl.histogram(bins, LEADING_BINS)
    else:
        # Unsigned, for an offset with a sign costs registers.
        tl.atomic_add(row_ptr + bins.to(tl.uint32), 1, mask=bins != 0, sem="relaxed")
    return counts


@triton.jit
def add_counts(row_ptr, counts, IN_SHARED: tl.constexpr):
    """Add to the program's row what is in `counts`."""
    if IN_SHARED:
        tl.atomic_add(row_ptr + tl.arange(0, LEADING_BINS), counts, mask=counts != 0, sem="relaxed")  # most are 0
