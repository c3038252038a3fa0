"""Pairs of tensors cut into parts for threads: the same parts on every machine, for sums are added up from them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

from rlforget_kernels.common.delta_blocks_cpu import DEPTH, ROWS, by_matrix_unit, packed, width

PART = 1 << 20
"""Elements of a part, about: a few hundred microseconds."""
PART_ROWS = 4096
"""Rows of a part at most: sums over rows stay short."""
_FACTOR = 1 << 18
"""Elements of a packed factor at most: what a core's second-level cache holds beside the blocks."""


class Shared:
    """What the parts of a tensor use together: made by the first that asks, dropped when the last has asked."""

    def __init__(self, make: Callable[[], npt.NDArray[Any]], uses: int) -> None:
        self._make, self._uses = make, uses
        self._value: npt.NDArray[Any] | None = None
        self._lock = threading.Lock()

    def take(self) -> npt.NDArray[Any]:
        """Return the value. Call it as often as there are uses."""
        with self._lock:
            value = self._make() if self._value is None else self._value
            self._uses -= 1
            self._value = value if self._uses else None
            return value


class Part(NamedTuple):
    """A rectangle of the pair number `k`, with the rows of the right-hand side that belong to its columns."""

    k: int
    rows: range
    columns: range
    factor: Shared


def parts(matrices: Sequence[Tensor], right: Sequence[Tensor], float64: bool, across: bool = False) -> list[Part]:
    """Cut matrices [out, in] with their factors [in, r] into parts, each matrix by ascending columns, then rows.

    Args:
        matrices: What is cut.
        right: The rows that belong to a part's columns are its factor, packed for `multiply_rows`.
        float64: Whether factors are packed as float64.
        across: Whether factors are packed transposed, for `multiply`.
    """
    found = []
    for k, (cut, factor) in enumerate(zip(matrices, right, strict=True)):
        wide = -(-factor.shape[1] // width(float64)) * width(float64)
        for columns in _ranges(cut.shape[1], max(_FACTOR // wide // DEPTH, 1) * DEPTH):
            strips = _ranges(cut.shape[0], min(max(PART // max(len(columns), 1) // ROWS, 1) * ROWS, PART_ROWS))
            here = factor[columns.start : columns.stop]
            if across:
                pack = functools.partial(packed, here.mT, float64)
            else:
                pack = functools.partial(packed, here, float64, by_matrix_unit(cut.dtype, float64))
            shared = Shared(pack, len(strips))
            found += [Part(k, rows, columns, shared) for rows in strips]
    return found


def _ranges(size: int, step: int) -> list[range]:
    """Cover range(size); what is empty is one empty range."""
    return [range(start, min(start + step, size)) for start in range(0, size, step)] or [range(0)]
