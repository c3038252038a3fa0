"""What is measured of ours: the calls that the command line makes."""

from __future__ import annotations

from pathlib import Path

import torch

import rlforget as rf
from benchmarks.delta_files.same_bits import same_bits
from rlforget.delta.patching import check_fits
from rlforget.delta.streaming import write_diff
from rlforget.weights import open_weights


def pack(before: Path, after: Path, path: Path, *, self_contained: bool = False) -> None:
    """Diff two folders into a file, in one pass."""
    write_diff(before, after, path, self_contained=self_contained, force=True)


def unpack(before: Path, path: Path, out: Path) -> None:
    """Apply a delta's file to a folder, into a new one, which is synced to its disk."""
    rf.apply(before, path, out=out, force=True)


def decode(side: Path, path: Path, *, backward: bool = False) -> None:
    """Compose every bit of the other side, and check its fingerprints, without writing."""
    check_fits(side, path, backward=backward)


class Live:
    """Weights in memory, led to the other side at each call, there and back in turns.

    Args:
        before: The checkpoint's folder.
        path: The delta's file.
    """

    def __init__(self, before: Path, path: Path) -> None:
        weights = open_weights(before)
        self._tensors = {name: weights.tensor(name).clone() for name in weights.names()}
        self._path, self._turns = path, 0

    def __call__(self) -> None:
        (rf.revert if self._turns % 2 else rf.apply)(self._tensors, self._path)
        self._turns += 1

    def holds(self, before: Path, after: Path) -> bool:
        """Whether the bits are those of the side to which the last call led."""
        weights = open_weights(after if self._turns % 2 else before)
        expected: dict[str, torch.Tensor] = {name: weights.tensor(name) for name in weights.names()}
        return same_bits(self._tensors, expected)
