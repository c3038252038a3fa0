"""Deltas: what changed between two sets of weights, its file, its statistics, and how to apply and revert it."""

from __future__ import annotations

from rlforget.delta.compare import diff
from rlforget.delta.overlaps import Overlap, SetOverlap, overlap
from rlforget.delta.patching import apply, revert
from rlforget.delta.sparse import Delta, TensorDelta
from rlforget.delta.stats import Change, DeltaStats

__all__ = [
    "Change",
    "Delta",
    "DeltaStats",
    "Overlap",
    "SetOverlap",
    "TensorDelta",
    "apply",
    "diff",
    "overlap",
    "revert",
]
