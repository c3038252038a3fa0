"""`delta_stats` with numba: changes are picked out of some ten thousand coordinates, and measured in the cache."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.compaction_cpu import compact_bits, compact_vectors
from rlforget_kernels.common.cpu_math import jit, specialized, widen
from rlforget_kernels.common.cpu_vectors import LANES, bit_length, can_compress
from rlforget_kernels.common.exact_sums import BIAS, LEAST_EXPONENT, MANTISSA, segment_sums
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.scratch import borrowed, columns
from rlforget_kernels.common.threads import map_pieces
from rlforget_kernels.delta_stats.reference import (
    ABSOLUTE_TOLERANCE,
    EXPONENT_SHIFT,
    PART,
    RELATIVE_TOLERANCE,
    SUM_BITS,
    TILE,
)

Array = npt.NDArray[Any]

_CHUNK = TILE << 4  # coordinates whose changes, at worst some megabytes, are in the cache between the steps
_ENTRY = 40  # bytes of a change between the steps, at most
_COUNTS = 8
_EXPONENTS = 257  # in the last bin, what is not finite
_STEPS = 66  # likewise
_COPIES = 4  # of each histogram: adding to one bin waits for the addition before


def foreach_delta_stats(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `rlforget_kernels.delta_stats`."""
    pairs = [_Pair(*sides) for sides in zip(before, after, strict=True)]
    ends = np.cumsum([pair.tiles for pair in pairs]).tolist()
    tile_sums = np.zeros((ends[-1], 2))  # of a pair or of many, a part that lies in one piece: one kernel is compiled
    counts, exponents, steps = (np.zeros((len(pairs), bins), np.int64) for bins in (_COUNTS, _EXPONENTS, _STEPS))
    largest = np.zeros(len(pairs))
    with borrowed() as scratch:
        rooms = _shares(scratch, torch.get_num_threads())

        def work(position: int, start: int, stop: int) -> _Found:
            pair, room = pairs[position], rooms.get()
            try:
                return pair.measure(start, stop, tile_sums[ends[position] - pair.tiles : ends[position]], room)
            finally:
                rooms.put(room)

        for (position, *_), (*found, most) in map_pieces(work, [pair.old.size for pair in pairs], TILE):
            for total, part in zip((counts, exponents, steps), found, strict=True):
                total[position] += part
            largest[position] = max(largest[position], most)
    columns_of_sums = torch.from_numpy(tile_sums).T.reshape(-1)
    totals = segment_sums(columns_of_sums, ends + [ends[-1] + end for end in ends]).view(2, -1)
    sums = torch.cat([totals, torch.from_numpy(largest)[None]]).T.contiguous()
    by_exponent, by_steps = (torch.from_numpy(bins[:, :-1].copy()) for bins in (exponents, steps))
    return torch.from_numpy(counts), sums, by_exponent, by_steps


def _shares(memory: Array, threads: int) -> queue.SimpleQueue[Array]:
    """Cut memory into equal parts that begin where a cache line does, and hold the changes of a tile each at least.

    Where that makes fewer parts than threads, some of these wait for a part.
    """
    count = min(threads, memory.size // (_ENTRY * (TILE + 2 * LANES)))
    size = memory.size // count // 64 * 64
    shares: queue.SimpleQueue[Array] = queue.SimpleQueue()
    for k in range(count):
        shares.put(memory[k * size : (k + 1) * size])
    return shares


_Found = tuple[Array, Array, Array, float]


class _Pair:
    """The two sides of a tensor.

    Attributes:
        old: The bits before: unsigned of floats and unsigned integers, else signed.
        new: The bits after.
        tiles: How many tiles they have.
    """

    def __init__(self, before: Tensor, after: Tensor) -> None:
        dtype = before.dtype
        self._float = dtype.is_floating_point
        self._layout = tuple(FLOAT_FORMAT[dtype][:2]) if self._float and dtype.itemsize < 4 else (0, 0)
        self._working = np.dtype(np.float32 if self._float and dtype.itemsize <= 4 else np.float64)
        kind = "u" if self._float or dtype in (torch.uint8, torch.bool) else "i"
        self.old, self.new = (as_bits(tensor).numpy().view(f"{kind}{dtype.itemsize}") for tensor in (before, after))
        self.tiles = -(-self.old.size // TILE)

    def measure(self, start: int, stop: int, tile_sums: Array, room: Array) -> _Found:
        """Measure the changes of [start, stop), and write the sums of each tile into float64 `tile_sums` [tiles, 2]."""
        index = np.dtype(np.int32 if self.old.size < 2**31 else np.int64)
        bits = self.old.dtype
        indices, old, new, a, b = columns(room, (index, bits, bits, self._working, self._working), _CHUNK + LANES)
        chunk = (indices.size - LANES) // TILE * TILE  # all of which may have changed
        if self._float and not any(self._layout):
            a, b = old.view(self._working), new.view(self._working)
        counts = np.zeros(_COUNTS, np.int64)
        histograms = [np.zeros((_COPIES, bins), np.int64) for bins in (_EXPONENTS, _STEPS)]
        bounds = [self._working.type(bound) for bound in (ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, np.inf)]
        magnitude = np.int64(2 ** (8 * bits.itemsize - 1) - 1 if self._float else 0)
        run = _runner(*self._layout, self._float, can_compress())
        listed = (indices, old, new, a, b, *bounds, magnitude)
        largest = run(self.old, self.new, start, stop, chunk, *listed, tile_sums, counts, *histograms)
        exponents, steps = (histogram.sum(0) for histogram in histograms)
        return counts, exponents, steps, float(largest)


@specialized
def _runner(exponent: int, mantissa: int, is_float: bool, vectors: bool) -> Callable[..., float]:
    """Make the loop over chunks for floats of a format, or, with 0 and 0, for what is its own value."""

    @jit
    def run(
        old_bits,
        new_bits,
        start,
        stop,
        chunk,
        indices,
        old,
        new,
        a,
        b,
        absolute,
        relative,
        infinity,
        magnitude,
        tile_sums,
        counts,
        exponents,
        steps,
    ):
        largest = 0.0
        for begin in range(start, stop, chunk):
            end = min(begin + chunk, stop)
            if vectors:
                count, _ = compact_vectors(old_bits, new_bits, begin, end, indices, old, new)
            else:
                count, _ = compact_bits(old_bits, new_bits, begin, end, indices, old, new)
            if exponent:
                for j in range(np.uint64(count)):
                    a[j] = widen(old[j], exponent, mantissa)
                    b[j] = widen(new[j], exponent, mantissa)
            if not is_float:
                for j in range(np.uint64(count)):
                    a[j] = old[j]
                    b[j] = new[j]
            most = _measure(
                indices[:count],
                old,
                new,
                a,
                b,
                absolute,
                relative,
                infinity,
                magnitude,
                tile_sums,
                counts,
                exponents,
                steps,
            )
            largest = most if most > largest else largest
        return largest

    compiled: Callable[..., float] = run
    return compiled


@jit
def _measure(indices, old, new, a, b, absolute, relative, infinity, magnitude, tile_sums, counts, exponents, steps):
    """Count, sum up and sort into bins the changes at `indices`, ascending, part by part; return the largest.

    Bits `old` and `new`, values `a` and `b`. `magnitude` is all bits but the sign of a float, 0 of an integer.
    """
    size, finite = np.empty(PART), np.empty(PART, np.bool_)
    exponent_bins, step_bins = np.empty(PART, np.uint32), np.empty(PART, np.uint32)
    largest = 0.0
    start, count = np.uint64(0), np.uint64(indices.size)
    while start < count:
        tile = indices[start] // TILE
        stop, limit = min(start + np.uint64(PART), count), (tile + 1) * TILE
        while indices[stop - np.uint64(1)] >= limit:
            stop -= np.uint64(1)
        most = _sizes(a[start:stop], b[start:stop], absolute, relative, infinity, size, finite, counts)
        _bins(old[start:stop], new[start:stop], magnitude, size.view(np.int64), finite, exponent_bins, step_bins)
        length = stop - start
        for j in range(length):
            exponents[j % np.uint64(_COPIES), exponent_bins[j]] += 1
            steps[j % np.uint64(_COPIES), step_bins[j]] += 1
        total, squares = _part_sums(size[:length], most)
        tile_sums[tile, 0] += total
        tile_sums[tile, 1] += squares
        largest = most if most > largest else largest
        start = stop
    return largest


@jit
def _sizes(a, b, absolute, relative, infinity, size, finite, counts):
    """Write the sizes of the changes, 0 where they are not finite, and whether they are; return the largest."""
    over_absolute = over_relative = bad = nan_a = infinite_a = nan_b = infinite_b = np.int64(0)
    most = 0.0
    for j in range(np.uint64(a.size)):
        large_a, large_b = abs(a[j]), abs(b[j])
        whole = (large_a < infinity) & (large_b < infinity)
        step = abs(b[j] - a[j])
        side = large_a if large_a > large_b else large_b
        over_absolute += (not whole) | (step > absolute)
        over_relative += (not whole) | (step > relative * side)
        bad += not whole
        nan_a += a[j] != a[j]
        infinite_a += large_a == infinity
        nan_b += b[j] != b[j]
        infinite_b += large_b == infinity
        value = np.float64(step) if whole else 0.0
        size[j] = value
        finite[j] = whole
        most = value if value > most else most
    for k, found in enumerate((a.size, over_absolute, over_relative, bad, nan_a, infinite_a, nan_b, infinite_b)):
        counts[k] += found
    return most


@jit
def _bins(old, new, magnitude, size_bits, finite, exponent_bins, step_bins):
    """Write the bins of the changes by exponent and by steps, the last ones of what is not finite."""
    for j in range(np.uint64(old.size)):
        first, second = _rank(old[j], magnitude), _rank(new[j], magnitude)
        upper, lower = (first, second) if first > second else (second, first)
        exponent = (size_bits[j] >> MANTISSA) - EXPONENT_SHIFT
        exponent = exponent if exponent > 0 else 0
        exponent = exponent if exponent < 255 else 255
        exponent_bins[j] = exponent if finite[j] else _EXPONENTS - 1
        step_bins[j] = np.int64(bit_length(np.uint64(upper) - np.uint64(lower))) if finite[j] else _STEPS - 1


@jit
def _rank(bits, magnitude):
    """`reference.rank` of one value."""
    value = np.int64(bits)
    size = value & magnitude
    signed = size if size == value else -size
    return signed if magnitude else value


@jit
def _part_sums(size, most):
    """The sums of sizes and of their squares, cut to multiples that follow from the largest."""
    if most == np.inf:
        return np.inf, np.inf
    stored = (np.float64(most).view(np.int64) >> np.int64(MANTISSA)) - BIAS
    exponent = stored if stored > LEAST_EXPONENT else LEAST_EXPONENT
    scale, half_scale = _power_of_two(SUM_BITS - exponent), _power_of_two(SUM_BITS // 2 - exponent)
    total = squares = np.int64(0)
    for j in range(np.uint64(size.size)):
        half = size[j] * half_scale
        total += np.int64(size[j] * scale + 0.5)
        squares += np.int64(half * half + 0.5)
    unit = _power_of_two(exponent - SUM_BITS // 2)
    return np.float64(total) * _power_of_two(exponent - SUM_BITS), np.float64(squares) * unit * unit


@jit
def _power_of_two(exponent):
    """`exact_sums.power_of_two` of one number."""
    return np.int64((exponent + BIAS) << MANTISSA).view(np.float64)
