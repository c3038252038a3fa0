"""`delta_stats`: how many coordinates changed, and by how much, in one read of both sides."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_same_layout
from rlforget_kernels.common.dispatch import backend, operator

COUNTS = (
    "changed",
    "over_absolute",
    "over_relative",
    "non_finite",
    "nan_before",
    "infinite_before",
    "nan_after",
    "infinite_after",
)
"""What the columns of `counts` are."""
SUMS = ("total", "total_of_squares", "largest")
"""What the columns of `sums` are."""
EXPONENT_BINS = 256
STEP_BINS = 65

Columns = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class DeltaStats:
    """What `delta_stats` returns, or, with a row a tensor, `foreach_delta_stats`: `DeltaStats(*delta_stats(a, b))`.

    Attributes:
        counts: int64 [..., 8], see `COUNTS`.
        sums: float64 [..., 3], see `SUMS`.
        exponents: int64 [..., 256].
        steps: int64 [..., 65].
    """

    counts: Tensor
    sums: Tensor
    exponents: Tensor
    steps: Tensor

    def count(self, name: str) -> Tensor:
        """The counts of one of `COUNTS`: int64 [...]."""
        return self.counts[..., COUNTS.index(name)]

    def sum(self, name: str) -> Tensor:
        """The values of one of `SUMS`: float64 [...]."""
        return self.sums[..., SUMS.index(name)]


def _fake_list(before: list[Tensor], after: list[Tensor]) -> Columns:
    require_same_layout("delta_stats", before, after)
    rows, device = len(before), before[0].device if before else torch.device("cpu")
    return (
        torch.empty((rows, len(COUNTS)), dtype=torch.int64, device=device),
        torch.empty((rows, len(SUMS)), dtype=torch.float64, device=device),
        torch.empty((rows, EXPONENT_BINS), dtype=torch.int64, device=device),
        torch.empty((rows, STEP_BINS), dtype=torch.int64, device=device),
    )


def _fake(before: Tensor, after: Tensor) -> Columns:
    counts, sums, exponents, steps = (column.squeeze(0) for column in _fake_list([before], [after]))
    return counts, sums, exponents, steps


@operator(_fake)
def delta_stats(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure the change of a tensor over the coordinates whose stored bits differ.

    Formulas, with a and b the values of a changed coordinate before and after, and d = b - a, computed in float32
    (float64 of float64 and integer tensors; an integer is first rounded to float64). A coordinate that is NaN or
    infinite on either side is over both tolerances, and in no sum and no histogram.

    - counts: changed; over_absolute, |d| > 1e-5; over_relative, |d| > 1e-3 max(|a|, |b|) (constants and product
      rounded like d); non_finite; then, of each side, NaN and infinite ones.
    - sums: of |d|, of d**2, and the largest |d|.
    - exponents: bin clamp(floor(log2 |d|) + 127, 0, 255). Bin 0 holds what float32 has no normal number for, 0 too.
    - steps: bin 0 for none (-0 and 0 are one value), else bin floor(log2 steps) + 1, steps being how many
      representable values lie between a and b, plus one: bin 1 are neighbours. Of integer tensors, |b - a|.

    Sums are the same to the bit on every device, for any number of threads or programs. The changes of 4096
    consecutive coordinates are added 256 at a time as integers, multiples of 2⁻⁵⁰ (of d²: 2⁻⁵⁰) of the power of
    two at the largest |d|; those sums are added in order in float64, and those of 4096 as in `exact_sums`.

    Args:
        before: Any shape and strides, any dtype of `sparse_delta`.
        after: Shape, dtype and device of `before`.

    Returns:
        counts int64 [8], sums float64 [3], exponents int64 [256], steps int64 [65]: see `DeltaStats`.

    Raises:
        ValueError: if shapes, dtypes or devices differ.
        TypeError: if the dtype is not supported.

    Bytes moved: both inputs once.

    Source: the tolerances are those of arXiv:2505.11711 (absolute) and arXiv:2511.08567 (relative).
    """
    counts, sums, exponents, steps = (column.squeeze(0) for column in _run([before], [after]))
    return counts, sums, exponents, steps


@operator(_fake_list)
def foreach_delta_stats(before: list[Tensor], after: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `delta_stats` does for every pair of two lists, in one launch group or one parallel region.

    Args:
        before: Tensors on one device, of any mix of shapes, dtypes and strides.
        after: As many, each of the shape and dtype of its counterpart.

    Returns:
        counts int64 [n, 8], sums float64 [n, 3], exponents int64 [n, 256], steps int64 [n, 65]: row k is to the bit
        what `delta_stats` returns of the k-th pair. Rows of counts and histograms add up to those of all tensors.

    Raises:
        ValueError: if lengths, shapes, dtypes or devices differ.
        TypeError: if a dtype is not supported.

    Bytes moved: see `delta_stats`.
    """
    return _run(before, after)


def _run(before: list[Tensor], after: list[Tensor]) -> Columns:
    require_same_layout("delta_stats", before, after)
    if not before:
        return _fake_list(before, after)
    found: Columns = backend(__name__, *before, *after).foreach_delta_stats(before, after)
    return found
