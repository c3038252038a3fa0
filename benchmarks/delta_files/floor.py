"""The fewest bytes a delta could take if every coordinate changed by chance, alike and apart from all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

STEPS = 1 << 16  # of two bytes


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
    coordinates, histogram = 0, torch.zeros(STEPS, dtype=torch.int64)
    for old, new in _tensors(before, after):
        coordinates += old.numel()
        for start in range(0, old.numel(), 1 << 24):
            a, b = old[start : start + (1 << 24)], new[start : start + (1 << 24)]
            where = a != b
            steps = (_ordered(b[where]) - _ordered(a[where])) % STEPS
            histogram += torch.bincount(steps, minlength=STEPS)
    changed = int(histogram.sum())
    share = torch.tensor([changed, coordinates - changed], dtype=torch.float64)
    return Floor(coordinates, changed, _entropy(share), _entropy(histogram.double()))


def _ordered(bits: Tensor) -> Tensor:
    """Map the bits of floats to integers in the order of the numbers."""
    return torch.where(bits < 0, bits.long() ^ 0x7FFF, bits.long())


def _entropy(counts: Tensor) -> float:
    """Return the bytes that as many draws take as were counted, at the frequencies that were counted."""
    counts = counts[counts > 0]
    return float(-(counts * (counts / counts.sum()).log2()).sum() / 8) if len(counts) else 0.0


def _tensors(before: Path, after: Path) -> Iterator[tuple[Tensor, Tensor]]:
    for file in sorted(before.glob("*.safetensors")):
        with safe_open(file, framework="pt") as old, safe_open(after / file.name, framework="pt") as new:
            for name in old.keys():  # noqa: SIM118
                yield tuple(side.get_tensor(name).view(torch.int16).flatten() for side in (old, new))
