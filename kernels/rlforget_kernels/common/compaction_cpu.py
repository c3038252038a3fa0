"""The changed elements of two arrays, side by side, for numba: what `sparse_delta` lists and others look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.cpu_vectors import (
    LANES,
    can_compress,
    compress,
    compress_indices,
    count_bits,
    differences,
    lowest_bit,
)

_LANES = np.uint64(LANES)
_ONE = np.uint64(1)
_BLOCK = np.uint64(LANES * LANES)
_MOST = np.uint64(3 * LANES // 4)


def compaction() -> Callable[..., tuple[int, int]]:
    """Return the form of `compact` that suits the processor."""
    form: Callable[..., tuple[int, int]] = compact_vectors if can_compress() else compact_bits
    return form


@jit
def _word(old, new, start, stop):
    """`differences`, also where fewer than 64 elements are left."""
    if start + _LANES <= stop:
        return differences(old, new, start)
    word = np.uint64(0)
    for i in range(stop - start):
        word |= np.uint64(old[start + i] != new[start + i]) << i
    return word


@jit
def count_changes(old, new, start, stop):
    """Count the changes of [start, stop)."""
    count, i, stop = np.uint64(0), np.uint64(start), np.uint64(stop)
    while i < stop:
        count += count_bits(_word(old, new, i, stop))
        i += _LANES
    return np.int64(count)


@jit
def compact_bits(old, new, start, stop, indices, before, after):
    """Write the changes of [start, stop) until the outputs have no room for those of 64 elements more.

    Returns how many are written, and the first element that was not looked at.
    """
    out, i, stop, room = np.uint64(0), np.uint64(start), np.uint64(stop), np.uint64(indices.size)
    while i < stop:
        word = _word(old, new, i, stop)
        if out + count_bits(word) > room:
            break
        while word:
            j = i + lowest_bit(word)
            indices[out] = j
            before[out] = old[j]
            after[out] = new[j]
            out += _ONE
            word &= word - _ONE
        i += _LANES
    return np.int64(out), np.int64(min(i, stop))


@jit
def compact_vectors(old, new, start, stop, indices, before, after):
    """`compact_bits` by AVX-512, whose stores reach further than what they write: the last ones are left to it.

    Where about half of the words have changes, the processor guesses wrongly whether the next one does. So a block's
    words are all compared before its changes are written; after a block where most words had some, one by one.
    """
    out, i, stop, room = np.uint64(0), np.uint64(start), np.uint64(stop), np.uint64(indices.size)
    words, nothing, found = np.empty(LANES, np.uint64), np.zeros(LANES, np.uint64), np.uint64(0)
    while i + _LANES <= stop and out + _LANES <= room:
        if found <= _MOST and i + _BLOCK <= stop and out + _BLOCK <= room:
            for k in range(_LANES):
                words[k] = differences(old, new, i + k * _LANES)
            marked = differences(words, nothing, np.uint64(0))
            found = count_bits(marked)
            while marked:
                k = lowest_bit(marked)
                word, first = words[k], i + k * _LANES
                compress_indices(first, word, indices, out)
                compress(old, first, word, before, out)
                compress(new, first, word, after, out)
                out += count_bits(word)
                marked &= marked - _ONE
            i += _BLOCK
            continue
        found, end = np.uint64(0), min(i + _BLOCK, stop - _LANES + _ONE)
        while i < end and out + _LANES <= room:
            word = differences(old, new, i)
            if word:
                compress_indices(i, word, indices, out)
                compress(old, i, word, before, out)
                compress(new, i, word, after, out)
                out += count_bits(word)
                found += _ONE
            i += _LANES
    count, reached = compact_bits(old, new, i, stop, indices[out:], before[out:], after[out:])
    return np.int64(out) + count, reached
