"""A change of live weights that can be undone: the bits from before, and the handle that puts them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from rlforget.weights.interrupts import deferring_interrupts
from rlforget.weights.opening import tensors_of
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import here, together
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import as_bits, bits_dtype
from rlforget_kernels.sparse_delta import sparse_delta

T = TypeVar("T")
ResultT = TypeVar("ResultT")

Live = nn.Module | Mapping[str, Tensor] | Weights
"""What stands for weights in memory."""

_RESTORED_AT_ONCE = 1 << 20
"""Entries: to put bits back must need next to no memory, because running out of it may be why."""


@dataclass(frozen=True)
class SavedBits:
    """Bits of one tensor from before a change.

    Attributes:
        bits: 1-D integers of the stored width: the whole tensor in row-major order, or its entries at `indices`.
        indices: Flat indices, or None for the whole tensor.
    """

    bits: Tensor
    indices: Tensor | None = None

    @classmethod
    def whole(cls, before: Tensor) -> SavedBits:
        """Keep all of a tensor, which must not change afterwards."""
        return cls(as_bits(before))

    @classmethod
    def changed(cls, before: Tensor, after: Tensor) -> tuple[SavedBits, int]:
        """Keep what is needed to turn `after` into `before`, in the smaller form; also count the differences."""
        indices, old, _ = sparse_delta(before, after)
        count = indices.numel()
        sparse = count * (indices.element_size() + old.element_size()) < before.numel() * before.element_size()
        return (cls(old, indices) if sparse else cls.whole(before)), count

    def restore(self, weight: Tensor) -> None:
        """Write the bits back into `weight`, which may have moved to another device since."""
        stored = weight.detach().view(bits_dtype(weight.dtype))
        if self.indices is None:
            stored.copy_(self.bits.view(stored.shape))
            return
        for start in range(0, self.indices.numel(), _RESTORED_AT_ONCE):
            part = slice(start, start + _RESTORED_AT_ONCE)
            at, bits = self.indices[part].to(stored.device).long(), self.bits[part]
            if stored.is_contiguous():
                as_bits(weight)[at] = bits.to(stored.device)
            else:
                stored[torch.unravel_index(at, stored.shape)] = bits.to(stored.device)


class Report(Protocol):
    """What a change did, as far as its handle needs to know."""

    @property
    def written(self) -> int:
        """Entries whose stored bits changed."""


ReportT = TypeVar("ReportT", bound=Report)


class Undo(Generic[ReportT]):
    """A change of live weights. Call it, or leave its `with` block, to put back the bits it found.

    Undoing twice does nothing the second time. Of several changes of one model, undo the last one first: each puts
    back what it found. Tensors are looked up anew when it is undone, so the model may have changed devices.

    Attributes:
        report: What it did.
    """

    def __init__(self, source: Live, saved: dict[str, SavedBits], report: ReportT) -> None:
        self._source, self._saved, self.report = source, saved, report

    def __call__(self) -> None:
        """Undo: put back every bit that was changed."""
        if self._saved:
            put_back(self._source, self._saved)
            self._saved = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.written} entries written{'' if self.active else ', undone'})"

    @property
    def active(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._saved)

    @property
    def written(self) -> int:
        """How many entries got other bits."""
        return self.report.written


def all_or_nothing(
    source: Weights,
    write: Callable[[dict[str, SavedBits]], T],
    end: Callable[[Sequence[T], dict[str, SavedBits]], ResultT],
) -> ResultT:
    """Call `write` to change live weights, and put every bit back if it raises.

    Of weights that are spread over ranks, every rank does so, and each puts its bits back where another raises, or is
    gone before all have told that they are done.

    Ctrl-C takes effect when `write` has ended, and then counts as raised by it; pressed again, it takes effect when all
    is put back. For any other exception, wherever it comes from, to find all of this undone, the call must be the last
    thing its caller does. It is no context manager because an exception on the way into or out of one escapes it.

    Args:
        source: The weights.
        write: Takes an empty dict, into which it must put the bits of each tensor, by name, before it changes them.
        end: Takes what `write` returned, on every rank, and the bits from before; makes the result of them.

    Returns:
        What `end` returned.

    Raises:
        WorldError: Another rank raised, or is gone.
    """
    saved: dict[str, SavedBits] = {}

    def undone() -> None:
        put_back(source, saved)
        saved.clear()

    def written() -> list[T]:
        told = together(lambda: write(saved), source.sharding)
        return [told] if source.sharding is None else gathered(told)

    try:
        return deferring_interrupts(lambda: end(written(), saved), undone)
    except BaseException:
        undone()  # what came just before or after, from elsewhere
        raise


def put_back(source: Live, saved: dict[str, SavedBits]) -> None:
    """Put saved bits back into live weights; an exception on the way does not keep it from finishing."""

    def restore() -> None:
        # Every name that was saved is one of the source's own; that shards lie alike elsewhere is not asked again, for
        # it may be because another rank is gone that this is done.
        tensor = source.tensor if isinstance(source, Weights) else tensors_of(source).__getitem__
        for name, one in saved.items():
            one.restore(here(tensor(name)))

    try:
        deferring_interrupts(restore)
    except BaseException:
        deferring_interrupts(restore)
        raise
