"""`select_top`'s passes with numba.

A thread takes a run of pieces. How many coordinates each run lists is known before the first is written, so all of them
write at once, straight to where their indices belong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import INFINITY, MAGNITUDE, jit
from rlforget_kernels.common.cpu_vectors import LANES as WORD
from rlforget_kernels.common.cpu_vectors import count_bits, lowest_bit, magnitudes_above
from rlforget_kernels.common.score_bits import LEADING_BINS, ROW, TRAILING_BINS, TRAILING_BITS
from rlforget_kernels.common.score_bits_cpu import LANES, count_leading
from rlforget_kernels.common.threads import Piece, in_order, runs

_BLOCK = 1024
_COPIES = 24  # of the second histogram, one a thread, 1 MiB each
_FULL = 1 << 16  # what a counter has counted when it is at 0 again
_TRAILING = np.uint32(TRAILING_BINS - 1)
_NEGATIVE_ZERO = np.uint32(0x80000000)

Codes = npt.NDArray[np.uint32]


class Run(NamedTuple):
    """What a thread takes, and what is in it: scores above the threshold, scores that equal it."""

    pieces: list[Piece]
    above: int
    equal: int


def leading_histogram(scores: Sequence[Tensor]) -> Tensor:
    """See `rlforget_kernels.select_top`."""
    codes = _codes(scores)

    def work(run: list[Piece]) -> npt.NDArray[np.int64]:
        bins, counts = np.empty(_BLOCK, np.uint16), np.zeros((LEADING_BINS, LANES), np.int64)
        for position, start, stop in run:
            count_leading(codes[position], start, stop, bins, counts)
        return np.asarray(counts.sum(axis=1))

    return _sum(in_order(work, _cut(codes)), LEADING_BINS)


class _Counts(NamedTuple):
    """A histogram in half the room: what bins hold modulo 2**16, and a bin for each 2**16 scores beyond that."""

    remainders: npt.NDArray[np.uint16]
    full: npt.NDArray[np.uint32]

    def between(self, start: int, stop: int) -> int:
        """How many scores are in bins start ... stop."""
        full = np.count_nonzero((self.full >= start) & (self.full < stop))
        return int(self.remainders[start:stop].sum(dtype=np.int64)) + _FULL * int(full)

    def add_to(self, out: npt.NDArray[np.int64], start: int) -> None:
        """Add the bins from `start` on, as many as there is room for."""
        out += self.remainders[start : start + out.size]
        here = self.full[(self.full >= start) & (self.full < start + out.size)]
        np.add.at(out, here - start, _FULL)


class Trailing:
    """The second histogram; kept by thread, it tells `select` how many coordinates each of them lists.

    Attributes:
        above: How many scores lie above the bin.
    """

    def __init__(self, scores: Sequence[Tensor], leading: int) -> None:
        self._codes = _codes(scores)
        self._cut = _cut(self._codes, _COPIES)
        self._first = leading << TRAILING_BITS

        def work(run: list[Piece]) -> tuple[int, _Counts]:
            size = sum(stop - start for _, start, stop in run)
            counts = np.zeros(TRAILING_BINS, np.uint16)
            full, found = np.empty(size // _FULL, np.uint32), np.zeros(2, np.int64)  # how many are above, and full
            for position, start, stop in run:
                _count_trailing(self._codes[position], start, stop, np.int32(self._first), counts, full, found)
            return int(found[0]), _Counts(counts, full[: found[1]])

        self._found = list(in_order(work, self._cut))
        self.above = sum(above for above, _ in self._found)

    def histogram(self) -> Tensor:
        """The histogram, int64 [TRAILING_BINS]."""
        return self._bins(0, TRAILING_BINS)

    def sums(self) -> Tensor:
        """The sums of its rows of `ROW` bins."""
        total = np.zeros(TRAILING_BINS // ROW, np.int64)
        for _, counts in self._found:
            total += counts.remainders.reshape(-1, ROW).sum(axis=1, dtype=np.int64)
            np.add.at(total, counts.full // ROW, _FULL)
        return torch.from_numpy(total)

    def row(self, number: int) -> Tensor:
        """The bins of a row."""
        return self._bins(number * ROW, ROW)

    def _bins(self, start: int, count: int) -> Tensor:
        total = np.zeros(count, np.int64)
        for _, counts in self._found:
            counts.add_to(total, start)
        return torch.from_numpy(total)

    def select(self, trailing: int, ties: int) -> list[Tensor]:
        """List what lies above the score in bin `trailing`, and the first `ties` of those in it."""
        found = [
            Run(pieces, above + one.between(trailing + 1, TRAILING_BINS), one.between(trailing, trailing + 1))
            for pieces, (above, one) in zip(self._cut, self._found, strict=True)
        ]
        return _listed(self._codes, found, self._first | trailing, ties)


def indices_from(scores: Sequence[Tensor], bits: int, ties: int) -> tuple[list[Tensor], int, list[int]]:
    """See `rlforget_kernels.select_top`; the last is how many scores of each tensor are NaN or negative."""
    codes = _codes(scores)

    def work(run: list[Piece]) -> list[tuple[int, int, int]]:
        return [_count(codes[position], start, stop, np.int32(bits)) for position, start, stop in run]

    cut = _cut(codes)
    faults, found = [0] * len(codes), []
    for run, counts in zip(cut, in_order(work, cut), strict=True):
        for (position, _, _), (_, _, wrong) in zip(run, counts, strict=True):
            faults[position] += wrong
        found.append(Run(run, sum(above for above, _, _ in counts), sum(equal for _, equal, _ in counts)))
    if any(faults):
        return [], 0, faults
    taken = min(ties, sum(run.equal for run in found))
    return _listed(codes, found, bits, taken), taken, faults


def select_short(scores: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """See `rlforget_kernels.select_top.together`; a start of numba costs so little that each is taken alone."""
    selected, faults = [], []
    for score, count in zip(scores, counts, strict=True):
        bits, ties = int(INFINITY), 0
        if count:
            codes = as_bits(score) & int(MAGNITUDE)
            bits = int(codes.kthvalue(len(codes) - count + 1).values)
            ties = count - int((codes > bits).sum())
        found, _, wrong = indices_from([score], bits, ties)
        selected.append(found[0] if found else score.new_empty(0, dtype=torch.int64))
        faults += wrong
    return selected, faults


def _codes(scores: Sequence[Tensor]) -> list[Codes]:
    return [as_bits(score).numpy().view(np.uint32) for score in scores]


def _cut(codes: Sequence[Codes], most: int | None = None) -> list[list[Piece]]:
    return runs([one.size for one in codes], WORD, most)


def _sum(histograms: Iterable[npt.NDArray[Any]], bins: int) -> Tensor:
    total = np.zeros(bins, np.int64)
    for histogram in histograms:
        total += histogram
    return torch.from_numpy(total)


def _listed(codes: Sequence[Codes], found: Sequence[Run], bits: int, ties: int) -> list[Tensor]:
    """Write the indices, the lowest `ties` of those of scores that equal `bits` among them."""
    before = [0, *itertools.accumulate(run.equal for run in found)]
    takes = [min(max(ties - earlier, 0), run.equal) for earlier, run in zip(before, found, strict=False)]
    # Where each piece writes: behind the most that the pieces before it can have. Where a run is one piece that is what
    # it has; room that nothing is written to takes no memory.
    room, places = [0] * len(codes), []
    for run, take in zip(found, takes, strict=True):
        places.append([room[position] for position, _, _ in run.pieces])
        for position, start, stop in run.pieces:
            room[position] += min(run.above + take, stop - start)
    indices = [np.empty(size, np.int64) for size in room]

    def work(number: int) -> list[int]:
        counts, left = [], takes[number]
        for (position, start, stop), place in zip(found[number].pieces, places[number], strict=True):
            count, left = _emit(codes[position], start, stop, np.int32(bits), left, indices[position], place)
            counts.append(count)
        return counts

    ends = [0] * len(codes)
    for number, counts in enumerate(in_order(work, range(len(found)))):
        for (position, _, _), place, count in zip(found[number].pieces, places[number], counts, strict=True):
            end = ends[position]
            if place != end:
                indices[position][end : end + count] = indices[position][place : place + count]
            ends[position] = end + count
    for one, end in zip(indices, ends, strict=True):
        one.resize(end, refcheck=False)  # cuts off without a copy
    return [torch.from_numpy(one) for one in indices]


@jit
def _above(codes, block, end, floor):
    """The word of the scores from `block` on, of those before `end`, that exceed `floor`."""
    if block + np.uint64(WORD) <= end:
        return magnitudes_above(codes, block, floor)
    word = np.uint64(0)
    for i in range(block, end):
        word |= np.uint64(np.int32(codes[i] & MAGNITUDE) > floor) << (i - block)
    return word


@jit
def _count_trailing(codes, start, stop, first, counts, full, found):
    """Count the scores of the bin from `first` on by their trailing bits, modulo 2**16.

    A bin that reaches 2**16 is written to `full`, behind the found[1] that are there; found[0] += how many lie above.
    """
    above, end, written = np.uint64(0), np.uint64(stop), np.uint64(found[1])
    for block in range(np.uint64(start), end, np.uint64(WORD)):
        higher = _above(codes, block, end, np.int32(first | _TRAILING))
        above += count_bits(higher)
        inside = _above(codes, block, end, np.int32(first - 1)) & ~higher
        while inside:
            bin_ = codes[block + lowest_bit(inside)] & _TRAILING
            count = np.uint16(counts[bin_] + np.uint16(1))
            counts[bin_] = count
            if count == np.uint16(0):
                full[written] = bin_
                written += np.uint64(1)
            inside &= inside - np.uint64(1)
    found[0] += np.int64(above)
    found[1] = np.int64(written)


@jit
def _count(codes, start, stop, least):
    """How many scores of [start, stop) exceed `least`, how many equal it, and how many are NaN or negative."""
    above, from_least, faults, end = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(stop)
    for block in range(np.uint64(start), end, np.uint64(WORD)):
        above += count_bits(_above(codes, block, end, least))
        from_least += count_bits(_above(codes, block, end, np.int32(least - 1)))
        for i in range(block, min(block + np.uint64(WORD), end)):
            faults += np.uint64((codes[i] > INFINITY) & (codes[i] != _NEGATIVE_ZERO))
    return np.int64(above), np.int64(from_least - above), np.int64(faults)


@jit
def _emit(codes, start, stop, least, ties, indices, place):
    """Write the indices of the scores of [start, stop) above `least`, and of the first `ties` that equal it.

    Returns how many are written, and how many of the ties are left.
    """
    out, end, left = np.uint64(place), np.uint64(stop), np.int64(ties)
    for block in range(np.uint64(start), end, np.uint64(WORD)):
        word = _above(codes, block, end, np.int32(least - np.int32(left > 0)))
        while word:
            i = block + lowest_bit(word)
            word &= word - np.uint64(1)
            if np.int32(codes[i] & MAGNITUDE) == least:
                if left == 0:
                    continue
                left -= 1
            indices[out] = i
            out += np.uint64(1)
    return np.int64(out) - place, left
