"""`select_top`'s passes with numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.cpu_math import INFINITY, jit
from rlforget_kernels.common.rounding import NAN
from rlforget_kernels.common.threads import map_slices

_NEGATIVE_ZERO = np.uint32(0x80000000)
_NAN = np.uint32(NAN)
_NEGATIVE = np.uint32(0x7FFF0000)
_16 = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_BLOCK = np.uint64(64)  # codes looked at together: most blocks hold nothing to count or to write
_WAVE = 1 << 24  # codes emitted between two looks at how many ties are left: the scratch memory they may take


def score_histogram(score: Tensor, prefix: int = -1) -> Tensor:
    """See `rlforget_kernels.select_top`."""
    bits = as_bits(score).numpy().view(np.uint32)
    bins = 1 << (15 if prefix < 0 else 16)

    def work(start: int, stop: int) -> np.ndarray:
        part = np.zeros(bins, dtype=np.int64)
        if prefix < 0:
            _count_high(bits[start:stop], part)
        else:
            _count_low(bits[start:stop], np.uint32(prefix), part)
        return part

    histogram = np.zeros(bins, dtype=np.int64)
    for _, part in map_slices(work, bits.size):
        histogram += part
    return torch.from_numpy(histogram)


def indices_from(score: Tensor, bits: int, ties: int) -> tuple[Tensor, int]:
    """See `rlforget_kernels.select_top`."""
    codes = as_bits(score).numpy().view(np.uint32)
    # Room for every coordinate: pages that are never written to take no memory, and shrinking gives the rest back.
    indices = np.empty(codes.size, dtype=np.int64)
    scratch = np.empty(min(codes.size, _WAVE), dtype=np.int64)
    end = taken = 0
    for start in range(0, codes.size, _WAVE):
        wave = codes[start : start + _WAVE]
        count, equal = _emit_wave(wave, np.int32(bits), ties - taken, start, indices[end:], scratch)
        end += count
        taken += equal
    indices.resize(end, refcheck=False)
    return torch.from_numpy(indices), taken


def _emit_wave(
    codes: npt.NDArray[np.uint32],
    least: np.int32,
    ties: int,
    first: int,
    indices: npt.NDArray[np.int64],
    scratch: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Do what `_emit` does, on several threads."""

    def work(start: int, stop: int) -> tuple[int, int, int]:
        # What comes before the first slice is known; the others wait in `scratch`, with as many ties as there may be.
        place = scratch[start:stop] if start else indices
        return (stop, *_emit(codes[start:stop], least, ties, first + start, place))

    end = taken = 0
    for start, (stop, count, equal) in map_slices(work, codes.size):
        if equal > ties - taken:
            count, equal = _emit(codes[start:stop], least, ties - taken, first + start, indices[end:])
        elif start:
            indices[end : end + count] = scratch[start : start + count]
        end += count
        taken += equal
    return end, taken


@jit
def _ordered(bits):
    """The bits of a score, with −0.0 as 0, NaN as the one NaN, and what is negative above everything."""
    if bits > INFINITY:
        if bits == _NEGATIVE_ZERO:
            return np.uint32(0)
        return _NAN if (bits & np.uint32(0x7FFFFFFF)) > INFINITY else _NEGATIVE
    return bits


@jit
def _count_high(bits, histogram):
    """Count the bins of 2**16 codes."""
    for i in range(np.uint64(bits.size)):
        histogram[_ordered(bits[i]) >> _16] += 1


@jit
def _count_low(bits, prefix, histogram):
    """Count the codes inside one bin."""
    block, end = np.uint64(0), np.uint64(bits.size)
    while block < end:
        stop = min(block + _BLOCK, end)
        inside = False
        for i in range(block, stop):
            inside |= _ordered(bits[i]) >> _16 == prefix
        if inside:
            for i in range(block, stop):
                code = _ordered(bits[i])
                if code >> _16 == prefix:
                    histogram[code & _LOW] += 1
        block = stop


@jit
def _emit(bits, least, ties, first, indices):
    """Write the positions, from `first` on, of the codes above `least` and of the first `ties` that equal it.

    `indices` has room for as many as there are codes. Returns how many are written, and how many of them equal.
    """
    place, block, end = np.uint64(0), np.uint64(0), np.uint64(bits.size)
    left = np.int64(ties)
    while block < end:
        stop = min(block + _BLOCK, end)
        # Above it lies what is written: codes are below 2**31, so as int32 there is room for −1.
        floor = np.int32(least - np.int32(left > 0))
        largest = np.int32(-1)
        for i in range(block, stop):
            largest = max(largest, np.int32(_ordered(bits[i])))
        if largest > floor:
            if left > 0:
                stop, taken = _until_tie(bits, block, stop, least, left)
                left -= taken
            # Branch-free: write always, advance where chosen.
            for i in range(block, stop):
                indices[place] = np.int64(i) + first
                place += np.uint64(np.int32(_ordered(bits[i])) > floor)
        block = stop
    return np.int64(place), ties - left


@jit
def _until_tie(bits, start, stop, least, ties):
    """End the range after its `ties`-th code that equals `least`, if it has so many: its end, and how many it has."""
    equal = np.int64(0)
    for i in range(start, stop):
        equal += np.int32(_ordered(bits[i])) == least
    if equal <= ties:
        return stop, equal
    stop, equal = start, np.int64(0)
    while equal < ties:
        equal += np.int32(_ordered(bits[stop])) == least
        stop += np.uint64(1)
    return stop, equal
