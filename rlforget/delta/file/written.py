"""What a rank wrote of a delta file, as the first one is told of it to put the parts together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlforget.delta.file.table import Frame, WholeEntry
from rlforget.delta.scan import Piece, added
from rlforget.delta.tensor_delta import Fingerprint

ZERO: Fingerprint = (0, 0)
"""The fingerprint of nothing."""


@dataclass
class Sum:
    """What the pieces of a tensor add up to."""

    changed: int = 0
    before: Fingerprint = ZERO
    after: Fingerprint = ZERO

    def add(self, piece: Piece) -> None:
        """Add a piece."""
        self.changed += piece.indices.numel()
        self.before = added(self.before, piece.fingerprint_before)
        self.after = added(self.after, piece.fingerprint_after)

    def take(self, other: Sum) -> None:
        """Add what pieces elsewhere add up to."""
        self.changed += other.changed
        self.before, self.after = added(self.before, other.before), added(self.after, other.after)


@dataclass(frozen=True)
class Written:
    """What a rank wrote of a delta file, and where."""

    file: str
    frames: list[Frame]
    tensors: dict[str, Sum]
    whole: dict[str, WholeEntry]


def joined(one: WholeEntry, other: WholeEntry) -> WholeEntry:
    """Return the entry of a tensor of which two ranks read parts."""

    def both(first: Fingerprint | None, second: Fingerprint | None) -> Fingerprint | None:
        return None if first is None or second is None else added(first, second)

    return replace(
        one,
        fingerprint_before=both(one.fingerprint_before, other.fingerprint_before),
        fingerprint_after=both(one.fingerprint_after, other.fingerprint_after),
    )
