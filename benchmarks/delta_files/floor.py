"""The fewest bytes a delta could take if every coordinate changed by chance, alike and apart from all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

STEPS = 1 << 16  # of two bytes
PIECE = 1 << 22
Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Floor:
    """What changed between two checkpoints, and its entropy.

    Attributes:
        coordinates: Of all tensors.
        changed: Those whose bits differ.
        positions: Bytes that say which ones: N·H(changed / N).
        steps: Bytes that say by how many steps between neighbouring numbers each moved: the entropy of their histogram.
    """

    coordinates: int
    changed: int
    positions: float
    steps: float

    @property
    def bytes(self) -> float:
        return self.positions + self.steps


def floor(before: Path, after: Path) -> Floor:
    """Measure two folders of the same tensors, in a dtype of two bytes."""
    coordinates, histogram = 0, np.zeros(STEPS, dtype=np.int64)
    for old, new in _tensors(before, after):
        coordinates += old.size
        for start in range(0, old.size, PIECE):
            a, b = old[start : start + PIECE], new[start : start + PIECE]
            where = np.flatnonzero(a != b)
            steps = _ordered(b[where]) - _ordered(a[where])  # modulo 2¹⁶
            histogram += np.bincount(steps, minlength=STEPS)
    changed = int(histogram.sum())
    return Floor(coordinates, changed, _entropy(np.array([changed, coordinates - changed])), _entropy(histogram))


def _ordered(bits: Bits) -> Bits:
    """Map the bits of floats to integers in the order of the numbers."""
    return np.where(bits & 0x8000, bits ^ 0x7FFF, bits)


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the bytes that as many draws take as were counted, at the frequencies that were counted."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8) if counts.size else 0.0


def _tensors(before: Path, after: Path) -> Iterator[tuple[Bits, Bits]]:
    for file in sorted(before.glob("*.safetensors")):
        with safe_open(file, framework="pt") as old, safe_open(after / file.name, framework="pt") as new:
            for name in old.keys():  # noqa: SIM118
                a, b = (side.get_tensor(name).view(torch.uint16).flatten().numpy() for side in (old, new))
                yield a, b
