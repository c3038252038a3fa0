"""What is measured of ours: the calls that the command line makes."""

from __future__ import annotations

from pathlib import Path

import torch

import rlforget as rf
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.file import DeltaFile
from rlforget.delta.streaming import diff_to_file
from rlforget.weights import open_weights


def pack(before: Path, after: Path, path: Path, *, self_contained: bool = False) -> None:
    """Diff two folders into a file, in one pass."""
    diff_to_file(before, after, path, self_contained=self_contained, force=True)


class InMemory:
    """Decodes a delta and applies it to weights as they are read, into memory that is there already.

    Args:
        before: The checkpoint's folder.
        path: The delta's file.
    """

    def __init__(self, before: Path, path: Path) -> None:
        self._before, self._path = before, path
        weights = open_weights(before)
        self._out = {name: weights.bits(name).clone() for name in weights.names()}

    def __call__(self) -> None:
        weights = ComposedWeights(open_weights(self._before), [DeltaFile(self._path)])
        for name, out in self._out.items():
            weights.bits(name, out=out)

    def holds(self, after: Path) -> bool:
        """Whether the result is `after`, on bits."""
        weights = open_weights(after)
        return all(torch.equal(out, weights.bits(name)) for name, out in self._out.items())


def unpack(before: Path, path: Path, out: Path) -> None:
    """Apply a delta's file to a folder, into a new one, which is synced to its disk."""
    rf.apply(before, path, out=out, force=True)
