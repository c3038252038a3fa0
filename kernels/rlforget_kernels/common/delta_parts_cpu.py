"""Pairs of tensors cut into parts for threads: the same parts on every machine, for sums are added up from them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from rlforget_kernels.common.cpu_vectors import LANES
from rlforget_kernels.common.delta_blocks_cpu import (
    ROWS,
    Factor,
    Scratch,
    by_matrix_unit,
    factor,
    scratch,
    width,
)

T = TypeVar("T")

PART = 1 << 20
"""Elements of a part, about: a few hundred microseconds."""
PART_ROWS = 2048
"""Rows of a part, about: sums over rows stay short."""
_FACTOR = 1 << 20
"""Elements of a packed factor, about: it and what it is packed of are ten times as many bytes."""


class Shared(Generic[T]):
    """What the parts of a tensor use together: made by the first that asks, dropped when the last has asked."""

    def __init__(self, make: Callable[[], T], uses: int) -> None:
        self._make, self._uses = make, uses
        self._value: T | None = None
        self._lock = threading.Lock()

    def take(self) -> T:
        """Return the value. Call it as often as there are uses."""
        with self._lock:
            value = self._make() if self._value is None else self._value
            self._uses -= 1
            self._value = value if self._uses else None
            return value


class Part(NamedTuple, Generic[T]):
    """A rectangle of the pair number `k`, with what is made of the rows of the right-hand side for its columns."""

    k: int
    rows: range
    columns: range
    factor: Shared[T]

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The first row and the one behind the last, and the columns likewise."""
        return self.rows.start, self.rows.stop, self.columns.start, self.columns.stop


def parts(
    matrices: Sequence[Tensor], right: Sequence[Tensor], float64: bool, make: Callable[[Tensor, Tensor], T]
) -> list[Part[T]]:
    """Cut matrices [out, in] with their factors [in, r] into parts, each matrix by ascending columns, then rows.

    Args:
        matrices: What is cut.
        right: Their factors.
        float64: Whether factors are packed as float64.
        make: Packs the rows of a factor that belong to the columns of a part of a matrix, given both.
    """
    found = []
    for k, (cut, whole) in enumerate(zip(matrices, right, strict=True)):
        wide = -(-whole.shape[1] // width(float64)) * width(float64)
        for columns in ranges(cut.shape[1], max(_FACTOR // wide, 1), LANES):
            strips = ranges(cut.shape[0], min(max(PART // max(len(columns), 1), 1), PART_ROWS), ROWS)
            shared = Shared(functools.partial(make, whole[columns.start : columns.stop], cut), len(strips))
            found += [Part(k, rows, columns, shared) for rows in strips]
    return found


def parts_of_differences(matrices: Sequence[Tensor], right: Sequence[Tensor], float64: bool) -> list[Part[Factor]]:
    """Cut pairs that begin with these matrices for `multiply_part`."""

    def make(rows: Tensor, cut: Tensor) -> Factor:
        return factor(rows, float64, by_matrix_unit(cut.dtype, float64))

    return parts(matrices, right, float64, make)


def ranges(size: int, most: int, multiple: int) -> list[range]:
    """Cover range(size) by equal steps, multiples of `multiple`, of about `most`; what is empty is one empty range."""
    step = -(-size // max(round(size / most), 1) // multiple) * multiple
    return [range(start, min(start + step, size)) for start in range(0, size, max(step, 1))] or [range(0)]


class Rooms:
    """Scratch memory of the threads that work on parts of matrices."""

    def __init__(
        self, cut: Sequence[Part[Factor]], matrices: Sequence[Tensor], right: Sequence[Tensor], float64: bool
    ) -> None:
        self._rows = [0] * len(matrices)
        for part in cut:
            self._rows[part.k] = max(self._rows[part.k], len(part.rows))
        self._kinds = [(right[k].shape[1], one.dtype) for k, one in enumerate(matrices)]
        self._float64 = float64
        self._local = threading.local()

    def of(self, part: Part[Factor]) -> Scratch:
        """Return what the calling thread may work in, of any content but numbers; valid until it asks again."""
        wanted = (self._rows[part.k], *self._kinds[part.k])
        if getattr(self._local, "wanted", None) != wanted:
            self._local.wanted, self._local.scratch = wanted, scratch(*wanted, self._float64)
        held: Scratch = self._local.scratch
        return held
