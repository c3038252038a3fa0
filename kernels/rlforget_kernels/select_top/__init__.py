"""`select_top`: which coordinates of several tensors hold the largest scores, exactly, without a sort.

Non-negative floats order as their bits. A histogram of their leading 12 bits finds the bin in which the last selected
score falls, a second one of the 19 bits that follow finds the score itself, and a last pass lists what is above it and
the first of what is equal to it. Histograms add up: to select over ranks, sum them, as `select_top` does over tensors:

    high = all_reduce(leading_histogram(scores))             leading, rest = threshold(high, count)
    low = all_reduce(trailing_histogram(scores, leading))    trailing, ties = threshold(low, rest)
    indices, taken = indices_from(scores, leading << 19 | trailing, ties left by the ranks before)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator, size_of_data
from rlforget_kernels.common.rounding import INFINITY
from rlforget_kernels.common.score_bits import INFINITY_BIN, LEADING_BINS, ROW, TRAILING_BINS


def leading_histogram(scores: list[Tensor]) -> Tensor:
    """Count scores by their leading bits.

    Args:
        scores: float32, any shapes, on one device: non-negative, −0.0 counting as 0. At least one.

    Returns:
        int64 [4096]: counts of `bits >> 19`, infinity in bin 0xFF0, NaN in 0xFF8 and what is negative in 0xFFF.
    """
    _check(scores)
    histogram: Tensor = backend(__name__, *scores).leading_histogram(scores)
    return histogram


def trailing_histogram(scores: list[Tensor], leading: int) -> Tensor:
    """Count the scores of one bin of `leading_histogram` by the bits that follow.

    Args:
        scores: As in `leading_histogram`, without NaN and what is negative.
        leading: The bin.

    Returns:
        int64 [524288]: counts of `bits & 0x7FFFF` of the scores with `bits >> 19 == leading`.
    """
    _check(scores)
    histogram: Tensor = backend(__name__, *scores).Trailing(scores, leading).histogram()
    return histogram


def threshold(histogram: Tensor, count: int) -> tuple[int, int]:
    """Find the bin that holds the `count`-th largest, counting from the top.

    Args:
        histogram: int64, 1-D.
        count: From 1 to the sum of `histogram`.

    Returns:
        The bin, and how many of its members belong to the `count` largest. On a device this waits for the device.
    """
    if len(histogram) % ROW:
        histogram = torch.nn.functional.pad(histogram, (0, -len(histogram) % ROW))
    rows = histogram.view(-1, ROW)
    return _threshold(rows.sum(1), lambda row: rows[row], count)


def _threshold(sums: Tensor, row_of: Callable[[int], Tensor], count: int) -> tuple[int, int]:
    """`threshold` of a histogram whose rows of `ROW` bins have these sums."""
    row, rest = _reached(sums, count)
    place, rest = _reached(row_of(row), rest)
    return row * ROW + place, rest


def _reached(counts: Tensor, count: int) -> tuple[int, int]:
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, count))
    found = counts.numel() - 1 - place
    return found, count - int(from_top[place] - counts[found])


def indices_from(scores: list[Tensor], bits: int, ties: int) -> tuple[list[Tensor], int]:
    """List where scores lie above a threshold, and the first of those that equal it.

    Args:
        scores: float32, any shapes, on one device: non-negative, −0.0 counting as 0. At least one.
        bits: The threshold, as float32 bits.
        ties: How many of the scores that equal the threshold to list at most: those of the lowest (position, index).

    Returns:
        For each tensor int64, 1-D: row-major flat indices, ascending; and how many of all are of scores that equal the
        threshold.

    Raises:
        ValueError: if a score is NaN or negative, naming the tensor's position, or `bits` are those of no such number.
    """
    _check(scores)
    if not 0 <= bits <= INFINITY:
        raise ValueError(f"indices_from: bits: expected those of a number from 0 to infinity; found {bits:#x}")
    found, taken, faults = backend(__name__, *scores).indices_from(scores, bits, ties)
    _require_none(faults)
    return found, taken


def _check(scores: Sequence[Tensor]) -> None:
    for position, score in enumerate(scores):
        if score.dtype is not torch.float32:
            raise TypeError(f"select_top: scores[{position}]: expected float32; found {score.dtype}")


def _require_none(faults: Sequence[int]) -> None:
    for position, count in enumerate(faults):
        if count:
            raise ValueError(
                f"select_top: scores[{position}]: expected numbers >= 0; found {count} that are NaN or negative. "
                "Look for NaN in the gradients or weights they were computed from."
            )


def _fake(scores: list[Tensor], count: int, histogram: Tensor | None = None) -> list[Tensor]:
    return [score.new_empty(size_of_data(), dtype=torch.int64) for score in scores]


@operator(_fake)
def select_top(scores: list[Tensor], count: int, histogram: Tensor | None = None) -> list[Tensor]:
    """Select exactly the `count` largest scores over all tensors, ties going to the lowest (position, index).

    Equal to a stable descending sort of the concatenated scores cut at `count`.

    Args:
        scores: float32, non-negative (−0.0 counts as 0), any shapes, at least one tensor. All on one device.
        count: From 0 to the number of all scores.
        histogram: int64 [4096], the sum over `scores` of the histograms that `conflict_score` returned, or of
            `leading_histogram`. None: it is counted here, which costs one more read.

    Returns:
        For each tensor an int64 1-D tensor of row-major flat indices, ascending.

    Raises:
        ValueError: if a score is NaN or negative (naming the tensor's position), `count` is out of range, or
            `histogram` is not that of `scores`.
        TypeError: for dtypes other than float32 and int64.

    Bytes moved, N scores: 4N for the second histogram and 4N to list them, 4N more without `histogram`;
    8 · count written. On a device what is selected beyond 2**24 is read once more, to be put in order.

    Source: radix selection, T. Alabi, J. D. Blanchard, B. Gordon, R. Steinbach, "Fast k-selection algorithms for
    graphics processors" (2012), with ties and lists of tensors this project's own.
    """
    _check(scores)
    kernels = backend(__name__, *scores, histogram)
    total = sum(score.numel() for score in scores)
    if not 0 <= count <= total:
        raise ValueError(f"select_top: expected a count in [0, {total}], the number of scores; found {count}")
    histogram = _first_histogram(scores, histogram)
    if count == 0:
        return [score.new_empty(0, dtype=torch.int64) for score in scores]
    leading, rest = threshold(histogram, count)
    second = kernels.Trailing(scores, leading)
    sums = second.sums()
    if (second.above, int(sums.sum())) != (count - rest, int(histogram[leading])):
        raise ValueError("select_top: expected the histogram of scores; found another. Pass None to have it counted.")
    picked: list[Tensor] = second.select(*_threshold(sums, second.row, rest))
    return picked


def _first_histogram(scores: list[Tensor], given: Tensor | None) -> Tensor:
    """The sum of the leading histograms, free of NaN and of what is negative."""
    if given is None:
        given = leading_histogram(scores)
    elif given.dtype is not torch.int64:
        raise TypeError(f"select_top: histogram: expected int64; found {given.dtype}")
    elif given.shape != (LEADING_BINS,) or int(given.sum()) != sum(score.numel() for score in scores):
        raise ValueError(
            f"select_top: expected a histogram of shape ({LEADING_BINS},) that counts every score; found "
            f"{int(given.sum())} counts in shape {tuple(given.shape)}. Pass None to have it counted."
        )
    if int(given[INFINITY_BIN + 1 :].sum()) > 0:
        _require_none([int(leading_histogram([score])[INFINITY_BIN + 1 :].sum()) for score in scores])
        raise ValueError("select_top: expected the histogram of scores; found one that counts NaN. Pass None.")
    return given


def _fake_each(scores: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [score.new_empty(size_of_data(), dtype=torch.int64) for score in scores]


@operator(_fake_each)
def select_top_each(scores: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Select the `counts[k]` largest scores of tensor k, for every k, ties going to the lowest index.

    Args:
        scores: As for `select_top`.
        counts: One a tensor, from 0 to the number of its scores.

    Returns:
        For each tensor an int64 1-D tensor of row-major flat indices, ascending: what `select_top` selects of it alone.

    Raises:
        ValueError: as `select_top`, and if there are not as many counts as tensors.
        TypeError: as `select_top`.

    Bytes moved: see `select_top`.
    """
    _check(scores)
    if len(scores) != len(counts):
        raise ValueError(f"select_top_each: expected one count a tensor; found {len(counts)} for {len(scores)} tensors")
    kernels = backend(__name__, *scores)
    for position, (score, count) in enumerate(zip(scores, counts, strict=True)):
        if not 0 <= count <= score.numel():
            raise ValueError(f"select_top_each: counts[{position}]: expected [0, {score.numel()}]; found {count}")
    histograms = {k: leading_histogram([score]) for k, score in enumerate(scores) if score.numel() >= TRAILING_BINS}
    faults = {k: int(histogram[INFINITY_BIN + 1 :].sum()) for k, histogram in histograms.items()}
    # Of the others the second histogram would be larger than the scores.
    short = [k for k in range(len(scores)) if k not in histograms]
    selected, wrong = kernels.select_short([scores[k] for k in short], [counts[k] for k in short])
    faults |= dict(zip(short, wrong, strict=True))
    _require_none([faults[k] for k in range(len(scores))])
    found = dict(zip(short, selected, strict=True))
    found |= {k: select_top([scores[k]], counts[k], histogram)[0] for k, histogram in histograms.items()}
    return [found[k] for k in range(len(scores))]


def _fake_above(scores: list[Tensor], least: float) -> list[Tensor]:
    return [score.new_empty(size_of_data(), dtype=torch.int64) for score in scores]


@operator(_fake_above)
def select_above(scores: list[Tensor], least: float) -> list[Tensor]:
    """Select every score that is `least` or more.

    Args:
        scores: As for `select_top`.
        least: Taken as float32; no NaN. 0 and what is below it select all.

    Returns:
        For each tensor an int64 1-D tensor of row-major flat indices, ascending.

    Raises:
        ValueError: if a score is NaN or negative (naming the tensor's position), or `least` is NaN.
        TypeError: for dtypes other than float32.

    Bytes moved, N scores: 4N to count them and 4N to list them; 8 for each that is selected.
    """
    if math.isnan(least):
        raise ValueError("select_above: least: expected a number; found nan")
    bits = int(torch.tensor(least, dtype=torch.float32).view(torch.int32)) if least > 0.0 else 0
    return indices_from(scores, bits, sum(score.numel() for score in scores))[0]
