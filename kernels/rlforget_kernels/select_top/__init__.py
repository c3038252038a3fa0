"""`select_top`: which coordinates of several tensors hold the largest scores, exactly, without a sort.

Non-negative floats order as their bits. A histogram of the high 15 bits finds the bin in which the last selected score
falls, a second one of the low 16 bits finds the score itself, and a last pass emits what is above it and the first of
what is equal to it. Histograms add up: to select over ranks, sum them, as `select_top` does over tensors:

    high = all_reduce(sum of score_histogram(score))           leading, rest = threshold(high, count)
    low = all_reduce(sum of score_histogram(score, leading))   trailing, ties = threshold(low, rest)
    indices, taken = indices_from(score, leading << 16 | trailing, ties left by the ranks and tensors before)
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator, size_of_data

_INFINITY_BIN = 0x7F80


def score_histogram(score: Tensor, prefix: int = -1) -> Tensor:
    """Count scores by their high bits, or those of one such bin by their low bits.

    Args:
        score: float32, any shape: non-negative, −0.0 counting as 0.
        prefix: −1, or a bin of the first histogram.

    Returns:
        int64 [32768]: counts of `bits >> 16`, NaN in bin 0x7FC0 and what is negative in 0x7FFF; or with `prefix`
        int64 [65536]: counts of `bits & 0xFFFF` of the scores with `bits >> 16 == prefix`.
    """
    _check(score, "score")
    histogram: Tensor = backend(__name__, score).score_histogram(score, prefix)
    return histogram


def threshold(histogram: Tensor, count: int) -> tuple[int, int]:
    """Find the bin that holds the `count`-th largest, counting from the top.

    Args:
        histogram: int64, 1-D.
        count: From 1 to the sum of `histogram`.

    Returns:
        The bin, and how many of its members belong to the `count` largest. On a device this waits for the device.
    """
    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, count))
    leading = histogram.numel() - 1 - place
    return leading, count - int(from_top[place] - histogram[leading])


def indices_from(score: Tensor, bits: int, ties: int) -> tuple[Tensor, int]:
    """List where scores lie above a threshold, and the first of those that equal it.

    Args:
        score: float32, any shape, as in `score_histogram`.
        bits: The threshold, as float32 bits.
        ties: How many of the scores that equal the threshold to list at most: those of the lowest indices.

    Returns:
        int64, 1-D: row-major flat indices, ascending; and how many of them are of scores that equal the threshold.
    """
    _check(score, "score")
    found: tuple[Tensor, int] = backend(__name__, score).indices_from(score, bits, ties)
    return found


def _check(score: Tensor, name: str) -> None:
    if score.dtype is not torch.float32:
        raise TypeError(f"select_top: {name}: expected float32; found {score.dtype}")


def _fake(scores: list[Tensor], count: int, histogram: Tensor | None = None) -> list[Tensor]:
    return [score.new_empty(size_of_data(), dtype=torch.int64) for score in scores]


@operator(_fake)
def select_top(scores: list[Tensor], count: int, histogram: Tensor | None = None) -> list[Tensor]:
    """Select exactly the `count` largest scores over all tensors, ties going to the lowest (position, index).

    Equal to a stable descending sort of the concatenated scores cut at `count`.

    Args:
        scores: float32, non-negative (−0.0 counts as 0), any shapes, at least one tensor. All on one device.
        count: From 0 to the number of all scores.
        histogram: int64 [32768], the sum over `scores` of the histograms that `conflict_score` returned, or of
            `score_histogram`. None: it is counted here, which costs one more read.

    Returns:
        For each tensor an int64 1-D tensor of row-major flat indices, ascending.

    Raises:
        ValueError: if a score is NaN or negative (naming the tensor's position), `count` is out of range, or
            `histogram` is not that of `scores`.
        TypeError: for dtypes other than float32 and int64.

    Bytes moved, N scores: 4N a read. One read for each of the two histograms (the first only without `histogram`), one
    to emit; on a GPU one more, to count what each of its programs will emit. 8 · count written.
    """
    for position, score in enumerate(scores):
        _check(score, f"scores[{position}]")
    backend(__name__, *scores, histogram)
    total = sum(score.numel() for score in scores)
    if not 0 <= count <= total:
        raise ValueError(f"select_top: expected a count in [0, {total}], the number of scores; found {count}")
    histogram = _first_histogram(scores, histogram)
    if count == 0:
        return [score.new_empty(0, dtype=torch.int64) for score in scores]
    leading, rest = threshold(histogram, count)
    low = _sum([score_histogram(score, leading) for score in scores])
    if int(low.sum()) != int(histogram[leading]):
        raise ValueError("select_top: expected the histogram of scores; found another. Pass None to have it counted.")
    trailing, ties = threshold(low, rest)
    picked = []
    for score in scores:
        indices, taken = indices_from(score, leading << 16 | trailing, ties)
        picked.append(indices)
        ties -= taken
    return picked


def _first_histogram(scores: list[Tensor], given: Tensor | None) -> Tensor:
    """The sum of the high histograms, free of NaN and of what is negative."""
    if given is None:
        histograms = [score_histogram(score) for score in scores]
        total = _sum(histograms)
    else:
        histograms, total = [], given
        if given.dtype is not torch.int64:
            raise TypeError(f"select_top: histogram: expected int64; found {given.dtype}")
        if given.shape != (1 << 15,) or int(given.sum()) != sum(score.numel() for score in scores):
            raise ValueError(
                f"select_top: expected a histogram of shape (32768,) that counts every score; found "
                f"{int(given.sum())} counts in shape {tuple(given.shape)}. Pass None to have it counted."
            )
    if int(total[_INFINITY_BIN + 1 :].sum()) == 0:
        return total
    for position, histogram in enumerate(histograms or [score_histogram(score) for score in scores]):
        if faults := int(histogram[_INFINITY_BIN + 1 :].sum()):
            raise ValueError(
                f"select_top: scores[{position}]: expected numbers >= 0; found {faults} that are NaN or negative. "
                "Look for NaN in the gradients or weights they were computed from."
            )
    raise ValueError("select_top: expected the histogram of scores; found one that counts NaN. Pass None.")


def _sum(histograms: list[Tensor]) -> Tensor:
    total = histograms[0].clone()
    for histogram in histograms[1:]:
        total += histogram
    return total
