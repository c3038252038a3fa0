"""Interference: which coordinates and directions of a later change hurt an earlier domain."""

from __future__ import annotations

from rlforget.interference.coordinates import Coordinates
from rlforget.interference.empirical_fisher import Fisher, fisher
from rlforget.interference.scores import NEEDS, Conflict, conflict
from rlforget.interference.subspace import ConflictSubspace, Pass, conflict_subspace

SCORES = tuple(NEEDS)
"""The names that `conflict(score=...)` takes."""

__all__ = [
    "SCORES",
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "Fisher",
    "Pass",
    "conflict",
    "conflict_subspace",
    "fisher",
]
