"""`step_codes`: the numbers of a delta file: where coordinates changed, by how much, and both as few and regular bytes.

Not an operator: files are made on the host, so all of it takes and returns numpy arrays. Three parts:

- Steps. The bits of a dtype are laid out as integers in the order of the values (`image` below), so that neighbouring
  values differ by one. A step is the difference of two images modulo 2**width, so it leads both ways, from any bits.
  It is kept zigzag, as an unsigned code: 0, -1, 1, -2, 2, ... become 0, 1, 2, 3, 4, ...
- Gaps. Of ascending positions, how many lie between one and the next.
- Packing. Unsigned numbers become streams of bytes that an entropy coder does well on, one symbol a byte.

image(b), of bits read as a signed integer of the dtype's width w: b where b >= 0 or the dtype is no float, else
b xor (2**(w-1) - 1). So -0.0 comes right before 0.0.

Packing (`Coding`): the lowest `shift` bits of every number, which are as good as random, go to a stream of their own.
What is left of a number goes to the first level that `mode` names, where it is below the level's limit; else the limit
marks the place and the rest, less the limit, goes on to the next level.

    level    limit  stream
    NIBBLES  15     two numbers a byte, the first in the low half; the last high half may be empty, then 0
    BYTES    255    a byte a number
    PLANES   none   all lowest bytes, then all second bytes, ..., as many as a number's dtype has

The streams follow one another in this order: low bits (number i's from bit i * shift on, lowest first, in bytes filled
from the lowest bit), then each level from the mode's on.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
"""1-D unsigned numpy array of 8, 16, 32 or 64 bits."""
Bytes = npt.NDArray[np.uint8]

NIBBLES: Final = 0
BYTES: Final = 1
PLANES: Final = 2
LIMITS: Final = {NIBBLES: 15, BYTES: 255}
MAX_SHIFT: Final = 56
SAMPLE: Final = 1 << 12
"""Numbers that the choice of a coding looks at, at most."""


@dataclasses.dataclass(frozen=True)
class Coding:
    """How numbers are packed.

    Args:
        mode: The first level, `NIBBLES`, `BYTES` or `PLANES`.
        shift: Low bits that are kept apart, 0 to `MAX_SHIFT`.
    """

    mode: int
    shift: int

    @property
    def sound(self) -> bool:
        """Whether there is such a coding."""
        return NIBBLES <= self.mode <= PLANES and 0 <= self.shift <= MAX_SHIFT


def steps_between(before: Numbers, after: Numbers, *, floating: bool) -> Numbers:
    """Return the zigzag codes of the steps from one array of bits to another.

    Args:
        before: Bits of any width, [n].
        after: Likewise, of the same width.
        floating: Whether the bits spell floats.

    Returns:
        [n], the unsigned dtype of the width; 0 where the bits are equal.
    """
    found: Numbers = _cpu().steps_between(before, after, floating=floating)
    return found


def step_(bits: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """Take each of `bits` [n] its step further, or back, in place. `codes` [n] as `steps_between` returns them."""
    _cpu().step_(bits, codes, floating=floating, backward=backward)


def step_at_(bits: Numbers, at: Numbers, codes: Numbers, *, floating: bool, backward: bool = False) -> None:
    """Take bits[at[j]] the step codes[j] further, or back, in place.

    Raises:
        IndexError: if a position is outside `bits`; nothing is written then.
    """
    _cpu().step_at_(bits, at, codes, floating=floating, backward=backward)


def spread(codes: Numbers, at: Numbers, count: int) -> Numbers:
    """Return [count] numbers of the dtype of `codes`: codes[j] at place at[j], 0 at all others.

    Raises:
        IndexError: if a position is not below `count`.
    """
    found: Numbers = _cpu().spread(codes, at, count)
    return found


def gaps_between(positions: Numbers) -> Numbers:
    """Return how many positions lie before the first of `positions` and between each and the next.

    Args:
        positions: uint32 [n], strictly ascending.

    Returns:
        uint32 [n].
    """
    found: Numbers = _cpu().gaps_between(positions)
    return found


def positions_of(gaps: Numbers, coordinates: int) -> Numbers | None:
    """Return the positions, uint32 [n], that `gaps_between` was given; None where one is not below `coordinates`."""
    found: Numbers | None = _cpu().positions_of(gaps, coordinates)
    return found


def pack(numbers: Numbers, coding: Coding) -> list[Bytes]:
    """Return the streams of `numbers` [n] in the order above, each plane by itself, empty ones left out."""
    streams: list[Bytes] = _cpu().pack(numbers, coding)
    return streams


def unpack(payload: Bytes, start: int, count: int, coding: Coding, dtype: Any) -> tuple[Numbers, int] | None:
    """Read back what `pack` wrote.

    Args:
        payload: Holds the streams, one right after the other, and maybe more.
        start: Where the first one begins.
        count: How many numbers there are.
        coding: As given to `pack`.
        dtype: Unsigned dtype of the numbers.

    Returns:
        The numbers [count] and the place after their last stream. None where the payload ends before.
    """
    found: tuple[Numbers, int] | None = _cpu().unpack(payload, start, count, coding, dtype)
    return found


def choose(numbers: Numbers) -> Coding:
    """Return the coding that should take the fewest bytes behind an entropy coder of whole bits, by a sample."""
    if not numbers.size:
        return Coding(BYTES, 0)
    stride = max(1, numbers.size // SAMPLE)
    return Coding(*_cpu().cheapest(np.ascontiguousarray(numbers[::stride][:SAMPLE]), numbers.size))


def _cpu() -> Any:
    from rlforget_kernels.step_codes import cpu

    return cpu
