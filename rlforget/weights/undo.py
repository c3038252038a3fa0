"""A change of live weights that can be undone: the bits from before, and the handle that puts them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from torch import Tensor

from rlforget.weights.opening import open_weights
from rlforget.weights.source import WeightsLike
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.sparse_delta import sparse_delta


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
        bits = as_bits(weight)
        if self.indices is None:
            bits.copy_(self.bits)
        else:
            bits[self.indices.to(bits.device).long()] = self.bits.to(bits.device)
        write_back(weight, bits)


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

    def __init__(self, source: WeightsLike, saved: dict[str, SavedBits], report: ReportT) -> None:
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


@contextmanager
def all_or_nothing(source: WeightsLike) -> Iterator[dict[str, SavedBits]]:
    """Collect the bits saved before each write, by tensor name, and put them all back if the block raises."""
    saved: dict[str, SavedBits] = {}
    try:
        yield saved
    except BaseException:
        put_back(source, saved)
        raise


def put_back(source: WeightsLike, saved: dict[str, SavedBits]) -> None:
    """Put saved bits back into live weights."""
    weights = open_weights(source)
    for name, one in saved.items():
        one.restore(weights.tensor(name))
