"""One frame of a delta file: what changed within a run of coordinates, as the fewest bytes, and back.

See docs/format.md. A frame is `sparse` (gaps and steps of the coordinates that changed), `dense` (a step for every
coordinate) or `whole` (the bits afterwards), whichever is smallest.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rlforget.delta.file.compression import Bytes, CompressionError, compress, decompress
from rlforget_kernels.step_codes import (
    BYTES,
    NIBBLES,
    PLANES,
    Coding,
    choose,
    gaps_between,
    pack,
    positions_of,
    spread,
    steps_between,
    unpack,
)

Bits = npt.NDArray[Any]
"""1-D unsigned integers of a dtype's width."""

SPARSE: Final = 1
DENSE: Final = 2
WHOLE: Final = 3
KINDS: Final = {SPARSE: "sparse", DENSE: "dense", WHOLE: "whole"}

_AS_STORED = Coding(NIBBLES, 0)  # of bits; the alternative is PLANES
_PLANES = Coding(PLANES, 0)
_DENSE_FROM = 0.5  # below, a gap and a step cost no more than a step for every coordinate
_PROBE = 1 << 13  # bytes of bits compressed, twice, to tell whether a whole frame is worth a try
_EFFORT = 3  # zstd's own default, for bits
_MORE_EFFORT = 6
_EDGE = 1.1  # a whole frame leads forward only, so it must win by this against steps that beat zstd on the bits


class FrameError(ValueError):
    """What is wrong with a frame."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """What changed within a run of coordinates.

    Attributes:
        coordinates: Length of the run.
        floating: Whether the bits spell floats.
        positions: uint32 [k], ascending, below `coordinates`.
        before: Bits at the positions before, [k].
        after: Bits at the positions after, [k].
        all_after: All bits of the run after, where at hand, in pieces.
    """

    coordinates: int
    floating: bool
    positions: npt.NDArray[np.uint32]
    before: Bits
    after: Bits
    all_after: list[Bits] | None


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a frame is encoded.

    Attributes:
        kind: `SPARSE`, `DENSE` or `WHOLE`.
        gaps: How the gaps are packed (sparse).
        values: How the steps are packed; of a whole frame, whether bits lie as stored or by planes.
    """

    kind: int
    gaps: Coding
    values: Coding

    @property
    def number(self) -> int:
        """The encoding as one number: kind, mode and shift of the gaps, mode and shift of the values, a byte each."""
        fields = (self.kind, self.gaps.mode, self.gaps.shift, self.values.mode, self.values.shift)
        return sum(field << (8 * place) for place, field in enumerate(fields))

    @classmethod
    def of(cls, number: int) -> Encoding:
        """Return the encoding of a number.

        Raises:
            FrameError: There is none.
        """
        kind, mode, shift, value_mode, value_shift = (number >> (8 * place) & 255 for place in range(5))
        found = cls(kind, Coding(mode, shift), Coding(value_mode, value_shift))
        known = kind in KINDS and found.gaps.sound and found.values.sound and number == found.number
        if not known or (kind != SPARSE and mode | shift) or (kind == WHOLE and found.values not in _BITS):
            raise FrameError(f"encoding {number:#x}")
        return found


_BITS = (_AS_STORED, _PLANES)
_NONE = Coding(NIBBLES, 0)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a frame says of its run of coordinates.

    Attributes:
        coordinates: Length of the run.
        positions: uint32 [k], the coordinates that changed; None: each has a value here.
        codes: Zigzag codes of the steps, at the positions or everywhere; None in a whole frame.
        after: All bits afterwards; None but in a whole frame.
        before: Bits before at the positions, or everywhere; None if they do not travel.
    """

    coordinates: int
    positions: npt.NDArray[np.uint32] | None
    codes: Bits | None
    after: Bits | None
    before: Bits | None

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        arrays = (self.positions, self.codes, self.after, self.before)
        return sum(array.nbytes for array in arrays if array is not None)


def encode(changes: Changes, *, self_contained: bool, thorough: bool) -> tuple[Encoding, bytes]:
    """Encode what changed, at least one coordinate.

    Args:
        changes: What to encode.
        self_contained: Let the bits from before travel too.
        thorough: Try all packings near the estimate. That gains a share of a percent, for several times the work.
    """
    codes = steps_between(changes.before, changes.after, floating=changes.floating)
    best = _best if thorough else choose
    kept = pack(changes.before, _PLANES) if self_contained else []
    if changes.positions.size > _DENSE_FROM * changes.coordinates:
        everywhere = spread(codes, changes.positions, changes.coordinates)
        encoding = Encoding(DENSE, _NONE, best(everywhere))
        data = compress([*pack(everywhere, encoding.values), *kept])
    else:
        gaps = gaps_between(changes.positions)
        codes -= 1  # none is 0
        encoding = Encoding(SPARSE, best(gaps), best(codes))
        data = compress([*pack(gaps, encoding.gaps), *pack(codes, encoding.values), *kept])
    if changes.all_after and _probe(changes.all_after[0]) * changes.coordinates < len(data):
        after = np.concatenate(changes.all_after) if len(changes.all_after) > 1 else changes.all_after[0]
        before = after.copy() if self_contained else None
        if before is not None:
            before[changes.positions] = changes.before
        as_stored, *other = _ways(after, before)
        whole = min([as_stored, *other], key=_size)
        if len(as_stored[1]) < len(data) or len(whole[1]) * _EDGE < len(data):
            return whole
    return encoding, data


def _best(numbers: Bits) -> Coding:
    """Choose how numbers are packed by trying what is near the estimate."""
    chosen = choose(numbers)
    shifts = {max(0, chosen.shift + more) for more in (-1, 0, 1)}
    near = [chosen, *(Coding(mode, shift) for mode in (NIBBLES, BYTES) for shift in sorted(shifts))]
    return min(near, key=lambda coding: len(compress(pack(numbers, coding))) if numbers.size else 0)


def _probe(bits: Bits) -> float:
    """Estimate from below how many bytes a coordinate takes in a whole frame, by a short look at both ways of it."""
    middle, size = bits.size // 2, _PROBE // bits.itemsize
    ends = [bits[:size], bits[middle : middle + size]] if bits.size > 2 * size else [bits]
    some = np.concatenate(ends)
    return min(len(compress([some.view(np.uint8)])), len(compress(pack(some, _PLANES)))) / some.size * 0.9


def encode_bits(bits: Bits, before: Bits | None = None) -> tuple[Encoding, bytes]:
    """Encode all bits of a run, at least one, and those from before where given."""
    return min(_ways(bits, before), key=_size)


def _ways(bits: Bits, before: Bits | None) -> list[tuple[Encoding, bytes]]:
    """Encode all bits as they are stored, and, where that is not the same, by planes."""
    kept = [] if before is None else pack(before, _PLANES)
    ways = [(_AS_STORED, [bits.view(np.uint8)]), (_PLANES, pack(bits, _PLANES))]
    return [(Encoding(WHOLE, _NONE, coding), _squeezed([*streams, *kept])) for coding, streams in ways[: bits.itemsize]]


def _squeezed(streams: list[Bytes]) -> bytes:
    """Compress bits; harder, where there is much to find: a frame sees less of it than a whole file would."""
    data = compress(streams, effort=_EFFORT)
    if 2 * len(data) < sum(stream.size for stream in streams):
        data = min(data, compress(streams, effort=_MORE_EFFORT), key=len)
    return data


def _size(encoded: tuple[Encoding, bytes]) -> int:
    return len(encoded[1])


def most_bytes(coordinates: int, changed: int, width: int) -> int:
    """Return how many bytes a frame may unpack to.

    Gaps are numbers of 4 bytes. Of any number a coding that helps keeps no more low bits than it has; what is left
    takes at most half a byte, a byte and as many as it has.
    """
    numbers = max(coordinates, changed)
    return numbers * (2 * 4 + 2) + numbers * (2 * width + 2) + numbers * width + 8


def decode(
    data: bytes, encoding: Encoding, *, coordinates: int, changed: int, width: int, with_before: bool
) -> Decoded:
    """Decode a frame.

    Args:
        data: Its bytes.
        encoding: How it is encoded.
        coordinates: Length of its run.
        changed: How many of them changed, at most `coordinates`.
        width: Bytes of an element.
        with_before: Whether the bits from before are in it.

    Raises:
        FrameError: It is damaged or forged.
    """
    try:
        payload = decompress(data, most_bytes(coordinates, changed, width))
    except CompressionError as error:
        raise FrameError(str(error)) from error
    reader = _Reader(payload)
    dtype = np.dtype(f"u{width}")
    if encoding.kind == WHOLE:
        after = reader.bits(coordinates, encoding.values, dtype)
        before = reader.numbers(coordinates, _PLANES, dtype) if with_before else None
        if before is not None and np.count_nonzero(before != after) != changed:
            raise FrameError(f"bits that differ at other than {changed} coordinates")
        found = Decoded(coordinates, None, None, after, before)
    elif encoding.kind == DENSE:
        codes = reader.numbers(coordinates, encoding.values, dtype)
        found_changed = np.count_nonzero(codes != 0)  # of truth values it is many times as fast
        if found_changed != changed:
            raise FrameError(f"{found_changed} changes in place of {changed}")
        before = reader.numbers(changed, _PLANES, dtype) if with_before else None
        found = Decoded(coordinates, None, codes, None, _spread(before, codes))
    else:
        positions = positions_of(reader.numbers(changed, encoding.gaps, np.dtype(np.uint32)), coordinates)
        if positions is None:
            raise FrameError("a coordinate outside its run")
        codes = reader.numbers(changed, encoding.values, dtype)
        codes += 1
        if not codes.all():
            raise FrameError("a step that leads nowhere")
        before = reader.numbers(changed, _PLANES, dtype) if with_before else None
        found = Decoded(coordinates, positions, codes, None, before)
    reader.finish()
    return found


def _spread(before: Bits | None, codes: Bits) -> Bits | None:
    """Put the bits of the coordinates that changed at their places."""
    if before is None:
        return None
    return spread(before, np.flatnonzero(codes != 0), codes.size)


class _Reader:
    """Takes numbers from a payload, one stream after another."""

    def __init__(self, payload: Bytes) -> None:
        self._payload, self._at = payload, 0

    def numbers(self, count: int, coding: Coding, dtype: np.dtype[Any]) -> Bits:
        found = unpack(self._payload, self._at, count, coding, dtype)
        if found is None:
            raise FrameError("a frame that ends early")
        numbers, self._at = found
        return numbers

    def bits(self, count: int, coding: Coding, dtype: np.dtype[Any]) -> Bits:
        """Take bits as stored, or by planes."""
        if coding == _PLANES:
            return self.numbers(count, coding, dtype)
        end = self._at + count * dtype.itemsize
        if end > self._payload.size:
            raise FrameError("a frame that ends early")
        stored, self._at = self._payload[self._at : end], end
        return stored.copy().view(dtype)

    def finish(self) -> None:
        if self._at != self._payload.size:
            raise FrameError(f"{self._payload.size - self._at} bytes too many in a frame")
