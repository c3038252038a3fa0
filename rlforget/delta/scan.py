"""Reading two sets of weights side by side, range by range, and keeping what differs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlforget.counting import telling
from rlforget.delta.sides import WholeMetas, fault_in_names
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.errors import LayoutError
from rlforget.weights import Layout, Pair, Weights, match, merged_aliases
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.batching import batches
from rlforget.weights.source import CHUNK
from rlforget_kernels.common.bits import index_dtype
from rlforget_kernels.fingerprint import fingerprint_after_patch, foreach_fingerprint
from rlforget_kernels.sparse_delta import foreach_sparse_delta

PIECE = CHUNK
"""Coordinates that are read at a time, and that a frame of a delta file covers at most."""


@dataclass(frozen=True)
class Piece:
    """The changes within a range of a tensor that keeps its shape and dtype.

    Attributes:
        name: The tensor, as the delta calls it.
        dtype: Its stored dtype.
        start: Row-major flat index of the range's first coordinate.
        stop: Index after its last one, at most `PIECE` further.
        indices: Flat indices in the whole tensor of what changed, ascending. 1-D, int32 (int64 in tensors of 2**31
            coordinates and more), on the CPU.
        before_bits: The bits there before. 1-D integers of the dtype's width.
        after_bits: The bits there after.
        after: All bits of the range after, where they are at hand. 1-D, `stop - start`.
        fingerprint_before: What the range adds to the tensor's fingerprint before, where it was read.
        fingerprint_after: Likewise after.
    """

    name: str
    dtype: torch.dtype
    start: int
    stop: int
    indices: Tensor
    before_bits: Tensor
    after_bits: Tensor
    after: Tensor | None = None
    fingerprint_before: Fingerprint = (0, 0)
    fingerprint_after: Fingerprint = (0, 0)


@dataclass(frozen=True)
class WholePair:
    """A tensor that changed as a whole: what the delta calls it, and its name on each side where it is there."""

    name: str
    before: str | None
    after: str | None


class Comparison:
    """Two sets of weights, matched tensor by tensor.

    Args:
        before: One.
        after: The other.
        renamed: {name before: name after}, for tensors that are not called the same.

    Attributes:
        before: One.
        after: The other.
        pairs: The tensors that keep shape and dtype, in the order of `before`.
        whole: Those that do not.
        renamed: As given, by canonical names, without those that are called the same after all.
        aliases: Further names of tied tensors, with the names they stand for.

    Raises:
        UnknownNameError: `renamed` has a name that is not there.
        LayoutError: No tensor of the one is in the other; or a tensor took the old name of a renamed one.
    """

    def __init__(self, before: Weights, after: Weights, renamed: Mapping[str, str] | None = None) -> None:
        self.before, self.after = before, after
        found = match(before, after, renamed)
        self.pairs = found.pairs
        changed = [*found.resized, *found.retyped]
        self.whole = [WholePair(*pair) for pair in changed]
        self.whole += [WholePair(name, name, None) for name in found.missing]
        self.whole += [WholePair(name, None, name) for name in found.extra]
        matched = [*found.pairs, *changed]
        if not matched and before.names() and after.names():
            raise LayoutError(
                after.description,
                expected=f"a tensor of {before.description}, e.g. {before.names()[0]!r}",
                found=f"none of them among its {len(after.names())}",
                fix="Give two checkpoints of one model, or say how its tensors were renamed.",
            )
        called = {pair.name: (renamed or {}).get(pair.name, pair.name) for pair in matched}
        self.renamed = {old: new for old, new in called.items() if new != old}
        self._check_names()
        new_names = set(self.renamed.values())
        aliases = merged_aliases(matched, before, after)
        self.aliases = {alias: name for alias, name in aliases.items() if alias not in new_names}
        for side, names in ((before, found.missing), (after, found.extra)):
            self.aliases |= {alias: name for alias, name in side.aliases.items() if name in names}

    def _check_names(self) -> None:
        fault = fault_in_names([pair.name for pair in self.pairs], self.whole_metas, self.renamed)
        if fault is not None:
            raise LayoutError(
                self.after.description,
                expected="tensors that each go by one name before and one after",
                found=fault,
                fix="Make two deltas of it: first drop or add, then rename.",
            )

    @property
    def whole_metas(self) -> WholeMetas:
        """Dtypes and shapes before and after of the tensors that do not keep them."""
        return {
            pair.name: (
                None if pair.before is None else self.before.meta(pair.before),
                None if pair.after is None else self.after.meta(pair.after),
            )
            for pair in self.whole
        }

    @property
    def layout(self) -> Layout:
        """The tensors that keep shape and dtype, by the names that a delta calls them, and all aliases."""
        metas = {pair.name: self.before.meta(pair.before) for pair in self.pairs}
        return Layout(self.before.description, metas, self.aliases)

    def pieces(
        self, progress: Progress | None = None, *, only: Container[str] | None = None, within: range | None = None
    ) -> Iterator[Piece]:
        """Read both sides once, in bounded memory; yield what changed, in order, ranges without changes included.

        Args:
            progress: Told how many coordinates were read.
            only: The tensors to read; None: all.
            within: Of all their coordinates, one after another, those in which ranges begin that are read; None: all.
        """
        progress = progress or telling("coordinates")
        pairs = [pair for pair in self.pairs if only is None or pair.name in only]
        total = sum(self.before.meta(pair.before).numel for pair in pairs)
        within = range(total) if within is None else range(within.start, min(within.stop, total))
        done, total = 0, len(within)
        for batch in map_ahead(self._compare, batches(self._ranges(pairs, within), len, PIECE)):
            yield from batch
            done += sum(piece.stop - piece.start for piece in batch)
            if progress is not None:
                progress(done, total)

    def _ranges(self, pairs: Iterable[Pair], within: range) -> Iterator[_Range]:
        place = 0
        for pair in pairs:
            numel = self.before.meta(pair.before).numel
            for start in range(0, numel, PIECE):
                if place + start in within:
                    yield _Range(pair, numel, start, min(start + PIECE, numel))
            place += numel

    def _compare(self, batch: list[_Range]) -> list[Piece]:
        before = [self.before.bits(r.pair.before, r.start, r.stop) for r in batch]
        after = [self.after.bits(r.pair.after, r.start, r.stop) for r in batch]
        lanes = foreach_fingerprint(before, [r.start for r in batch])
        return [
            self._piece(*parts) for parts in zip(batch, after, lanes, *foreach_sparse_delta(before, after), strict=True)
        ]

    def _piece(self, r: _Range, after: Tensor, lanes: Tensor, near: Tensor, old: Tensor, new: Tensor) -> Piece:
        indices = near.to(index_dtype(r.numel)) + r.start
        first, second = lanes.tolist()
        third, fourth = fingerprint_after_patch(lanes, indices, old, new).tolist()
        dtype = self.before.meta(r.pair.before).dtype
        return Piece(r.pair.name, dtype, r.start, r.stop, indices, old, new, after, (first, second), (third, fourth))


@dataclass(frozen=True)
class _Range:
    pair: Pair
    numel: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def added(first: Fingerprint, second: Fingerprint) -> Fingerprint:
    """Add two parts of a fingerprint, modulo 2**64, as signed numbers."""
    low, high = ((a + b + 2**63) % 2**64 - 2**63 for a, b in zip(first, second, strict=True))
    return low, high
