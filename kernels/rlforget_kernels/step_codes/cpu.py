"""`step_codes` with numba. Every kernel gets arrays of just the size it fills or reads, so none can go outside."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.step_codes import BYTES, MAX_SHIFT, NIBBLES, PLANES, Bytes, Coding, Numbers

_ONE, _8 = np.uint64(1), np.uint64(8)
_BYTE = np.uint64(255)
_NIBBLE = np.uint64(15)
_BLOCK = 1 << 17  # symbols of an entropy coder's block, which has a description of its code
_DESCRIBED = 12.0  # bits that the description of one symbol's code takes, and that its length is off
_MISSED = 0.72  # bits by which a sample's entropy is too small for each symbol: 1 / (2 ln 2), after Miller and Madow


def steps_between(before: Numbers, after: Numbers, *, floating: bool) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    codes = np.empty(before.size, f"u{before.itemsize}")
    _zigzag(_signed(before), _signed(after), *_form(codes, floating), _signed(codes))
    return codes


def step_(bits: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """See `rlforget_kernels.step_codes`."""
    if bits.size != codes.size:
        raise IndexError(f"{codes.size} steps for {bits.size} bits")
    _step(_signed(bits), codes, np.uint64(2**64 - 1 if backward else 0), *_form(codes, floating))


def step_at_(bits: Numbers, at: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """See `rlforget_kernels.step_codes`."""
    if at.size != codes.size or (at.size and int(at.max()) >= bits.size):
        raise IndexError("a position outside the bits")
    _step_at(_signed(bits), at, codes, np.uint64(2**64 - 1 if backward else 0), *_form(codes, floating))


def spread(codes: Numbers, at: Numbers, count: int) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    if at.size != codes.size or (at.size and int(at.max()) >= count):
        raise IndexError("a position outside the bits")
    everywhere = np.zeros(count, codes.dtype)
    _scatter(codes, at, everywhere)
    return everywhere


def gaps_between(positions: Numbers) -> Numbers:
    """See `rlforget_kernels.step_codes`."""
    gaps = np.empty(positions.size, np.uint32)
    _gaps(positions, gaps)
    return gaps


def positions_of(gaps: Numbers, coordinates: int) -> Numbers | None:
    """See `rlforget_kernels.step_codes`."""
    positions = np.empty(gaps.size, np.uint32)
    return positions if _positions(gaps, positions) <= coordinates else None


def pack(numbers: Numbers, coding: Coding) -> list[Bytes]:
    """See `rlforget_kernels.step_codes`."""
    count, shift = numbers.size, np.uint64(coding.shift)
    low = np.empty(-(-count * coding.shift // 8), np.uint8)
    if coding.shift:
        _pack_low(numbers, shift, low)
    streams, rest = [low], numbers
    for level in range(coding.mode, PLANES):
        size = -(-rest.size // 2) if level == NIBBLES else rest.size
        stream, beyond = np.empty(size, np.uint8), np.empty(rest.size, rest.dtype)
        kernel = _pack_nibbles if level == NIBBLES else _pack_bytes
        rest = beyond[: kernel(rest, shift, stream, beyond)]
        shift = np.uint64(0)
        streams.append(stream)
    planes = np.empty((rest.itemsize, rest.size), np.uint8)
    _pack_planes(rest, shift, planes)
    return [stream for stream in (*streams, *planes) if stream.size]


def unpack(payload: Bytes, start: int, count: int, coding: Coding, dtype: Any) -> tuple[Numbers, int] | None:
    """See `rlforget_kernels.step_codes`."""
    numbers = np.empty(count, dtype)
    sizes = [-(-count * coding.shift // 8), 0, 0, 0]
    edges, at, expected = [], start, count
    for stream in range(4):
        level = stream - 1
        if coding.mode <= level < PLANES:
            sizes[stream] = -(-expected // 2) if level == NIBBLES else expected
        elif level == PLANES:
            sizes[stream] = expected * numbers.itemsize
        if at + sizes[stream] > payload.size:
            return None
        edges.append(payload[at : at + sizes[stream]])
        at += sizes[stream]
        if coding.mode <= level < PLANES:
            expected = int(_count_nibbles(edges[-1], expected) if level == NIBBLES else _count_bytes(edges[-1]))
    low, nibbles, bytes_, planes = edges
    if coding.mode == NIBBLES:
        _unpack_nibbles(nibbles, bytes_, planes, expected, numbers)
    elif coding.mode == BYTES:
        _unpack_bytes(bytes_, planes, expected, numbers)
    else:
        _unpack_planes(planes, numbers)
    if coding.shift:
        _unpack_low(low, np.uint64(coding.shift), numbers)
    return numbers, at


def cheapest(sample: Numbers, count: int) -> tuple[int, int]:
    """Return mode and shift of the coding that costs least for `count` numbers, by a sample of at least one."""
    share = sample.size / min(count, _BLOCK)
    best, mode, shift = _cheapest(sample, np.int64(8 * sample.itemsize), np.int64(MAX_SHIFT), share)
    return (int(mode), int(shift)) if best >= 0 else (PLANES, 0)


def _signed(bits: Numbers) -> Numbers:
    return bits.view(f"i{bits.itemsize}")


def _form(codes: Numbers, floating: bool) -> tuple[np.int64, np.int64]:
    """The bits that the image of a negative number flips, and the bits that a word of 64 has above the width."""
    width = 8 * codes.itemsize
    return np.int64(2 ** (width - 1) - 1 if floating else 0), np.int64(64 - width)


# Bits are read signed, so that the sign fills a word of 64 bits; `spare` brings it back there after a sum.


@jit
def _zigzag(before, after, flips, spare, codes):
    for i in range(np.uint64(codes.size)):
        old, new = np.int64(before[i]), np.int64(after[i])
        step = (new ^ ((new >> 63) & flips)) - (old ^ ((old >> 63) & flips))
        step = (step << spare) >> spare
        codes[i] = (step << 1) ^ (step >> 63)


@jit
def _stepped(value, code, sign, flips, spare):
    """The bits that `value` becomes; `sign` is 0, or all ones to go back."""
    code = np.uint64(code)
    step = np.int64((((code >> _ONE) ^ (np.uint64(0) - (code & _ONE))) ^ sign) - sign)
    value = np.int64(value)
    place = (value ^ ((value >> 63) & flips)) + step
    place = (place << spare) >> spare
    return place ^ ((place >> 63) & flips)


@jit
def _step(bits, codes, sign, flips, spare):
    for i in range(np.uint64(codes.size)):
        bits[i] = _stepped(bits[i], codes[i], sign, flips, spare)


@jit
def _step_at(bits, at, codes, sign, flips, spare):
    for j in range(np.uint64(codes.size)):
        i = np.uint64(at[j])
        bits[i] = _stepped(bits[i], codes[j], sign, flips, spare)


@jit
def _scatter(codes, at, everywhere):
    for j in range(np.uint64(codes.size)):
        everywhere[np.uint64(at[j])] = codes[j]


@jit
def _gaps(positions, gaps):
    before = np.uint32(0)
    for j in range(np.uint64(gaps.size)):
        gaps[j] = positions[j] - before
        before = np.uint32(positions[j] + np.uint32(1))


@jit
def _positions(gaps, positions):
    """Fill positions; return the number of coordinates that they need."""
    end = np.uint64(0)
    for j in range(np.uint64(gaps.size)):
        end += np.uint64(gaps[j])
        positions[j] = end
        end += _ONE
    return end


@jit
def _pack_low(numbers, shift, out):
    size, mask = np.uint64(numbers.size), (_ONE << shift) - _ONE
    held, filled, j = np.uint64(0), np.uint64(0), np.uint64(0)
    whole = size & ~np.uint64(7) if shift <= _8 else np.uint64(0)
    for i in range(np.uint64(0), whole, _8):  # eight numbers at a time fill whole bytes, at most a word of them
        held = np.uint64(0)
        for k in range(_8):
            held |= (np.uint64(numbers[i + k]) & mask) << (shift * k)
        for k in range(shift):
            out[j + k] = (held >> (_8 * k)) & _BYTE
        j += shift
    held = np.uint64(0)
    for i in range(whole, size):
        held |= (np.uint64(numbers[i]) & mask) << filled
        filled += shift
        while filled >= _8:
            out[j] = held & _BYTE
            j += _ONE
            held >>= _8
            filled -= _8
    if filled:
        out[j] = held & _BYTE


@jit
def _unpack_low(low, shift, numbers):
    """Put the low bits below those that `numbers` hold."""
    held, filled, j = np.uint64(0), np.uint64(0), np.uint64(0)
    mask = (_ONE << shift) - _ONE
    for i in range(np.uint64(numbers.size)):
        while filled < shift:
            held |= np.uint64(low[j]) << filled
            j += _ONE
            filled += _8
        numbers[i] = (np.uint64(numbers[i]) << shift) | (held & mask)
        held >>= shift
        filled -= shift


@jit
def _pack_nibbles(numbers, shift, out, beyond):
    """Write the first level; return how many numbers go on to the next."""
    count = np.uint64(0)
    for i in range(np.uint64(numbers.size)):
        number = np.uint64(numbers[i]) >> shift
        symbol = min(number, _NIBBLE)
        if i & _ONE:
            out[i >> _ONE] |= symbol << np.uint64(4)
        else:
            out[i >> _ONE] = symbol
        beyond[count] = number - _NIBBLE
        count += np.uint64(number >= _NIBBLE)
    return count


@jit
def _pack_bytes(numbers, shift, out, beyond):
    count = np.uint64(0)
    for i in range(np.uint64(numbers.size)):
        number = np.uint64(numbers[i]) >> shift
        out[i] = min(number, _BYTE)
        beyond[count] = number - _BYTE
        count += np.uint64(number >= _BYTE)
    return count


@jit
def _pack_planes(numbers, shift, out):
    size = np.uint64(numbers.size)
    for plane in range(np.uint64(numbers.itemsize)):
        for i in range(size):
            out[plane, i] = ((np.uint64(numbers[i]) >> shift) >> (_8 * plane)) & _BYTE


@jit
def _count_nibbles(stream, count):
    """How many of the first `count` nibbles mark that the number goes on."""
    marks, size = np.uint64(0), np.uint64(count) >> _ONE
    for j in range(size):
        pair = stream[j]
        marks += np.uint64((pair & np.uint8(15)) == np.uint8(15)) + np.uint64(pair >= np.uint8(240))
    if count & 1:
        marks += np.uint64((stream[size] & np.uint8(15)) == np.uint8(15))
    return marks


@jit
def _count_bytes(stream):
    marks = np.uint64(0)
    for i in range(np.uint64(stream.size)):
        marks += np.uint64(stream[i] == np.uint8(255))
    return marks


@jit
def _from_planes(planes, count, size, j):
    """Number j of `count` that lie in `size` planes."""
    number = np.uint64(0)
    for plane in range(size):
        number |= np.uint64(planes[plane * count + j]) << (_8 * plane)
    return number


@jit
def _unpack_nibbles(nibbles, bytes_, planes, count, numbers):
    in_bytes, in_planes = np.uint64(0), np.uint64(0)
    size, count = np.uint64(numbers.itemsize), np.uint64(count)
    for i in range(np.uint64(numbers.size)):
        number = np.uint64(nibbles[i >> _ONE] >> (np.uint64(4) * (i & _ONE))) & _NIBBLE
        if number == _NIBBLE:
            more = np.uint64(bytes_[in_bytes])
            in_bytes += _ONE
            if more == _BYTE:
                more += _from_planes(planes, count, size, in_planes)
                in_planes += _ONE
            number += more
        numbers[i] = number


@jit
def _unpack_bytes(bytes_, planes, count, numbers):
    in_planes = np.uint64(0)
    size, count = np.uint64(numbers.itemsize), np.uint64(count)
    for i in range(np.uint64(numbers.size)):
        number = np.uint64(bytes_[i])
        if number == _BYTE:
            number += _from_planes(planes, count, size, in_planes)
            in_planes += _ONE
        numbers[i] = number


@jit
def _unpack_planes(planes, numbers):
    size, count = np.uint64(numbers.itemsize), np.uint64(numbers.size)
    for i in range(count):
        numbers[i] = _from_planes(planes, count, size, i)


@jit
def _symbol_bits(histogram, symbols, together, share):
    """About how many bits a code of whole bits takes for `symbols` symbols, `together` of them at a time.

    Their entropy; what a whole number of bits wastes on the likeliest; what repetitions cost that are found by chance,
    which they are where a code is short; and the symbols' share of the bits that describe the code.
    """
    if symbols == 0:
        return 0.0
    entropy, largest, distinct = 0.0, 0, 0
    for count in histogram:
        if count:
            entropy -= count * np.log2(count / symbols)
            largest = max(largest, count)
            distinct += 1
    if distinct == 1:
        return 8.0  # a run
    likeliest = (largest / symbols) ** together
    codes = symbols / together
    wasted = 0.5 * likeliest**2 + 0.4 * max(0.0, 3.7 - entropy / codes) + (0.06 if together == 1 else 0.0)
    described = distinct**together * _DESCRIBED * share
    return max(entropy + _MISSED * distinct + codes * wasted, codes) + described


@jit
def _cheapest(sample, width, max_shift, share):
    """Return the cost of the cheapest coding, its mode and its shift."""
    size = np.float64(sample.size)
    highest = np.uint64(0)
    for number in sample:
        highest = max(highest, np.uint64(number))
    # Every byte by itself.
    best = np.float64(0)
    mode, chosen = np.int64(2), np.int64(0)
    for plane in range(width // 8):
        bytes_ = np.zeros(256, np.int64)
        for number in sample:
            bytes_[(np.uint64(number) >> np.uint64(8 * plane)) & _BYTE] += 1
        best += _symbol_bits(bytes_, sample.size, 1, share)
    shift = np.int64(0)
    while shift <= max_shift and shift < width and (shift == 0 or (highest >> np.uint64(shift)) > 0):
        nibbles, bytes_, in_bytes = np.zeros(16, np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
        marked, marked_twice, beyond = 0, 0, 0
        for number in sample:
            rest = np.uint64(number) >> np.uint64(shift)
            nibbles[min(rest, _NIBBLE)] += 1
            bytes_[min(rest, _BYTE)] += 1
            beyond += int(rest >= _BYTE)
            if rest >= _NIBBLE:
                rest -= _NIBBLE
                in_bytes[min(rest, _BYTE)] += 1
                marked += 1
                marked_twice += int(rest >= _BYTE)
        low = np.float64(shift) * size
        cost = low + _symbol_bits(bytes_, sample.size, 1, share) + beyond * width
        if cost < best:
            best, mode, chosen = cost, np.int64(1), shift
        cost = low + _symbol_bits(nibbles, sample.size, 2, share) + _symbol_bits(in_bytes, marked, 1, share)
        cost += marked_twice * width
        if cost < best:
            best, mode, chosen = cost, np.int64(0), shift
        shift += 1
    return best, mode, chosen
