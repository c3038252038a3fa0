"""A rollback that was done: what it did, and the handle that undoes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlforget.weights.undo import Undo


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback did.

    Attributes:
        coordinates: Entries that were to be rolled back: the coordinates chosen, or where the correction is not 0.
        written: Entries whose stored bits changed.
        strength: The share that was asked for.
        norm_share: Norm of what was taken off, as stored, over the norm of δ.
        rounding: For a rule, ‖u − u_written‖ / ‖u‖: what rounding to the stored dtype did; for coordinates None.
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


class Rollback(Undo[RollbackReport]):
    """A rollback in live weights. Call it, or leave its `with` block, to put back the bits it found.

    Undoing twice does nothing the second time. Of several rollbacks of one model, undo the last one first: each puts
    back what it found. Tensors are looked up anew when it is undone, so the model may have changed devices.

    Attributes:
        report: What it did.
    """
