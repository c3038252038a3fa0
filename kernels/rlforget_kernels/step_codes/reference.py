"""`step_codes` in plain numpy: the truth that the compiled form is held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlforget_kernels.step_codes import LIMITS, NIBBLES, PLANES, Bytes, Coding, Numbers


def image(bits: Numbers, *, floating: bool) -> Numbers:
    """Return the places of `bits` in the order of the values they spell, as unsigned numbers modulo 2**width."""
    signed = bits.view(f"i{bits.itemsize}")
    if floating:
        signed = np.where(signed < 0, signed ^ np.iinfo(signed.dtype).max, signed)
    return signed.view(f"u{bits.itemsize}")


def steps_between(before: Numbers, after: Numbers, *, floating: bool) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    step = (image(after, floating=floating) - image(before, floating=floating)).view(f"i{before.itemsize}")
    return ((step << 1) ^ (step >> (8 * step.itemsize - 1))).view(f"u{before.itemsize}")


def step_(bits: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """See `rlforget_kernels.step_codes`."""
    unsigned = bits.view(codes.dtype)
    one = codes.dtype.type(1)
    steps = (codes >> one) ^ np.where(codes & one, ~codes.dtype.type(0), codes.dtype.type(0))
    places = image(unsigned, floating=floating)
    # The image of an image is what it was made of.
    unsigned[:] = image(places - steps if backward else places + steps, floating=floating)


def step_at_(bits: Numbers, at: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """See `rlforget_kernels.step_codes`."""
    if at.size and int(at.max()) >= bits.size:
        raise IndexError("a position outside the bits")
    some = bits[at]
    step_(some, codes, floating=floating, backward=backward)
    bits[at] = some


def spread(codes: Numbers, at: Numbers, count: int) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    if at.size and int(at.max()) >= count:
        raise IndexError("a position outside the bits")
    everywhere = np.zeros(count, codes.dtype)
    everywhere[at] = codes
    return everywhere


def gaps_between(positions: Numbers) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    return gaps.astype(np.uint32)


def positions_of(gaps: Numbers, coordinates: int) -> Numbers | None:
    """See `rlforget_kernels.step_codes`."""
    positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
    return None if positions.size and positions[-1] >= coordinates else positions.astype(np.uint32)


def pack(numbers: Numbers, coding: Coding) -> list[Bytes]:
    """See `rlforget_kernels.step_codes`."""
    bits = (numbers[:, None] >> np.arange(coding.shift, dtype=numbers.dtype)) & numbers.dtype.type(1)
    streams = [np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")]
    rest = numbers >> numbers.dtype.type(coding.shift) if coding.shift < 8 * numbers.itemsize else numbers * 0
    for level in range(coding.mode, PLANES):
        limit = min(LIMITS[level], np.iinfo(rest.dtype).max)
        streams.append(_level(np.minimum(rest, limit), level))
        rest = rest[rest >= limit] - rest.dtype.type(limit)
    streams.extend(np.ascontiguousarray(rest.view(np.uint8).reshape(-1, rest.itemsize).T))
    return [stream for stream in streams if stream.size]


def _level(symbols: Numbers, level: int) -> Bytes:
    symbols = symbols.astype(np.uint8)
    if level != NIBBLES:
        return symbols
    even = np.append(symbols, np.zeros(symbols.size % 2, np.uint8))
    pairs: Bytes = even[::2] | (even[1::2] << 4)
    return pairs


def unpack(payload: Bytes, start: int, count: int, coding: Coding, dtype: Any) -> tuple[Numbers, int] | None:
    """See `rlforget_kernels.step_codes`."""
    dtype = np.dtype(dtype)
    rest = _Reader(payload, start)
    low = rest.take(-(-count * coding.shift // 8))
    levels, expected = [], count
    for level in range(coding.mode, PLANES):
        raw = rest.take(-(-expected // 2) if level == NIBBLES else expected)
        symbols = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[:expected] if level == NIBBLES else raw
        levels.append((symbols.astype(dtype), symbols == LIMITS[level]))
        expected = int(levels[-1][1].sum()) if not rest.failed else 0
    planes = rest.take(expected * dtype.itemsize)
    if rest.failed:
        return None
    numbers = np.ascontiguousarray(planes.reshape(dtype.itemsize, expected).T).reshape(-1).view(dtype)
    for symbols, marks in reversed(levels):
        symbols[marks] += numbers
        numbers = symbols
    if coding.shift:
        bits = np.unpackbits(low, bitorder="little")[: count * coding.shift].reshape(count, coding.shift)
        bits = bits[:, : 8 * dtype.itemsize]
        below = (bits.astype(dtype) << np.arange(bits.shape[1], dtype=dtype)).sum(1, dtype=dtype)
        above = numbers << dtype.type(coding.shift) if coding.shift < 8 * dtype.itemsize else numbers * 0
        numbers = above | below
    return numbers, rest.at


class _Reader:
    """Takes bytes from a payload for as long as there are any."""

    def __init__(self, payload: Bytes, at: int) -> None:
        self.payload, self.at, self.failed = payload, at, False

    def take(self, size: int) -> Bytes:
        """Return the next `size` bytes; as many zeros, and `failed`, where there are not so many."""
        if self.failed or self.at + size > self.payload.size:
            self.failed = True
            return np.zeros(0, np.uint8)
        self.at += size
        return self.payload[self.at - size : self.at]
