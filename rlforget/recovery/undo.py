"""A rollback that was done: what it did, and the bits to undo it with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from rlforget.weights import WeightsLike, open_weights
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.sparse_delta import sparse_delta


@dataclass(frozen=True)
class SavedBits:
    """Bits of one tensor from before a rollback.

    Attributes:
        bits: 1-D integers of the stored width: the whole tensor in row-major order, or its entries at `indices`.
        indices: Flat indices, or None for the whole tensor.
    """

    bits: Tensor
    indices: Tensor | None = None

    @classmethod
    def changed(cls, before: Tensor, after: Tensor) -> tuple[SavedBits, int]:
        """Keep what is needed to turn `after` into `before`, in the smaller form; also count the differences."""
        indices, old, _ = sparse_delta(before, after)
        count = indices.numel()
        sparse = count * (indices.element_size() + old.element_size()) < before.numel() * before.element_size()
        return (cls(old, indices) if sparse else cls(as_bits(before))), count

    def restore(self, weight: Tensor) -> None:
        """Write the bits back into `weight`, which may have moved to another device since."""
        bits = as_bits(weight)
        if self.indices is None:
            bits.copy_(self.bits)
        else:
            bits[self.indices.to(bits.device).long()] = self.bits.to(bits.device)
        write_back(weight, bits)


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback did.

    Attributes:
        coordinates: Entries that were to be rolled back: the coordinates chosen, or every entry of the correction.
        written: Entries whose stored bits changed.
        strength: The share that was asked for.
        norm_share: Norm of what was taken off, as stored, over the norm of δ.
        rounding: For a subspace, ‖u − u_written‖ / ‖u‖: what rounding to the stored dtype did; else None.
        rounding_damage: For a subspace, ‖G_A (u − u_written)‖ / ‖G_A u‖, estimated by the probes; the share
            of the repair that rounding may spoil; else None.
    """

    coordinates: int
    written: int
    strength: float
    norm_share: float
    rounding: float | None = None
    rounding_damage: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for programs."""
        return asdict(self)


class Rollback:
    """A rollback in live weights. Call it, or leave its `with` block, to put back the bits it found.

    Undoing twice does nothing the second time. Of several rollbacks of one model, undo the last one first: each puts
    back what it found. Tensors are looked up anew when it is undone, so the model may have changed devices.

    Attributes:
        report: What it did.
    """

    def __init__(self, source: WeightsLike, saved: dict[str, SavedBits], report: RollbackReport) -> None:
        self._source, self._saved, self.report = source, saved, report

    def __call__(self) -> None:
        """Undo: put back every bit that the rollback changed."""
        if self._saved:
            restore(self._source, self._saved)
            self._saved = {}

    def __enter__(self) -> Rollback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self()

    def __repr__(self) -> str:
        return f"Rollback({self.written} entries written{'' if self.active else ', undone'})"

    @property
    def active(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._saved)

    @property
    def written(self) -> int:
        """How many entries got other bits."""
        return self.report.written


def restore(source: WeightsLike, saved: dict[str, SavedBits]) -> None:
    """Put saved bits back into live weights."""
    weights = open_weights(source)
    for name, one in saved.items():
        one.restore(weights.tensor(name))
