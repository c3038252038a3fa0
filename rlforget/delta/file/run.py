"""What shares a frame of a delta file, on its way there: stretches of the line, one after another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from rlforget.delta.file.frames import Bits, Changes, Encoding, encode, encode_bits
from rlforget.delta.file.table import Form
from rlforget.delta.scan import Piece


@dataclass
class Run:
    """Stretches of the line that will share a frame: pieces of tensors, each with its place in the run, or bits."""

    start: int = 0
    form: Form = (0, False, False)
    size: int = 0
    pieces: list[tuple[int, Piece]] = field(default_factory=list)
    bits: list[Bits] = field(default_factory=list)

    def encoded(self, self_contained: bool, thorough: bool) -> tuple[Encoding, bytes]:
        """Encode the frame; see `frames.encode`."""
        if not self.pieces:
            return encode_bits(_joined(self.bits))
        positions = [(piece.indices.numpy() + (place - piece.start)).astype(np.uint32) for place, piece in self.pieces]
        before, after = (
            _joined([unsigned(bits) for bits in side])
            for side in ([p.before_bits for _, p in self.pieces], [p.after_bits for _, p in self.pieces])
        )
        if (before == after).any():
            raise ValueError("expected coordinates that changed; found one with the same bits on both sides")
        all_after = [unsigned(piece.after) for _, piece in self.pieces if piece.after is not None]
        changes = Changes(
            coordinates=self.size,
            floating=self.form[1],
            positions=_joined(positions),
            before=before,
            after=after,
            all_after=all_after if len(all_after) == len(self.pieces) else None,
        )
        return encode(changes, self_contained=self_contained, thorough=thorough)


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def unsigned(bits: Tensor) -> Bits:
    """Return the bits of a tensor as an array of unsigned integers."""
    found: Bits = bits.numpy().view(f"u{bits.element_size()}")
    return found
