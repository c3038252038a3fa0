"""The statistics of two sets of weights, added up range by range as they are read side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from rlforget.delta.scan import PIECE, Comparison, Piece
from rlforget.delta.stats import Change, DeltaStats, combine, dtype_name, fate, fate_of_file, named_change
from rlforget.delta.whole import FileDelta
from rlforget.weights.split import from_parts
from rlforget_kernels.delta_stats import DeltaStats as Measured
from rlforget_kernels.delta_stats import foreach_delta_stats

_PIECE_COST = 1 << 12  # what a piece counts for beside its coordinates, so that empty ones do not pile up

_Norms = list[tuple[float, float]]
"""Sum and sum of squares of each range. They are added up once, so that no order and no split of ranges shows."""


class Tally:
    """Statistics that grow range by range; they may be split among ranks, and are the same to the last digit.

    Args:
        found: The two, matched.
        files: What changed among the files that are no weights.
    """

    def __init__(self, found: Comparison, files: Iterable[FileDelta]) -> None:
        metas = {pair.name: found.before.meta(pair.before) for pair in found.pairs}
        self._changes = {name: Change(dtypes=(dtype_name(meta.dtype),)) for name, meta in metas.items()}
        self._norms: dict[str, _Norms] = {name: [] for name in metas}
        self._whole = {name: fate(*sides) for name, sides in found.whole_metas.items()}
        self._files = {file.name: fate_of_file(file.before, file.after) for file in files}
        self._renamed = found.renamed
        self._waiting: list[Piece] = []
        self._room = PIECE

    def add(self, piece: Piece) -> None:
        """Measure one range, together with others: a call costs as much as thousands of coordinates."""
        self._waiting.append(replace(piece, after=None))
        self._room -= piece.indices.numel() + _PIECE_COST
        if self._room < 0:
            self._measure()

    def _measure(self) -> None:
        pieces = self._waiting
        self._waiting, self._room = [], PIECE
        before = [piece.before_bits.view(piece.dtype) for piece in pieces]
        measured = Measured(*foreach_delta_stats(before, [piece.after_bits.view(piece.dtype) for piece in pieces]))
        parts: dict[str, list[Change]] = {}
        for row, p in enumerate(pieces):
            change = named_change(p.dtype, p.stop - p.start, p.indices.numel(), measured, row)
            parts.setdefault(p.name, [self._changes[p.name]]).append(change)
            self._norms[p.name].append((change.l1, change.sum_of_squares))
        self._changes |= {name: combine(changes) for name, changes in parts.items()}

    def stats(self) -> DeltaStats:
        """Return what was measured so far; where ranks split the work, by all of them."""
        self._measure()
        here = {name: (change, self._norms[name]) for name, change in self._changes.items() if change.numel}
        told = from_parts(here)
        shares = {name: [part[name] for part in told if name in part] for name in self._changes}
        changes = {name: _added(shares[name]) if shares[name] else empty for name, empty in self._changes.items()}
        return DeltaStats(changes, self._whole, self._files, self._renamed)


def _added(shares: list[tuple[Change, _Norms]]) -> Change:
    l1, squares = (math.fsum(column) for column in zip(*(pair for _, norms in shares for pair in norms), strict=True))
    return replace(combine(change for change, _ in shares), l1=l1, sum_of_squares=squares)
