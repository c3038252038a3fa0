"""Interference: which coordinates and directions of a later change hurt an earlier domain."""

from __future__ import annotations

from rlforget.interference.combining import combine_fishers
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.empirical_fisher import Fisher, fisher
from rlforget.interference.kronecker import KroneckerLayer, KroneckerRule, kronecker_rule
from rlforget.interference.scores import NEEDS, conflict
from rlforget.interference.selection import Conflict
from rlforget.interference.soft import SoftRule, soft_rule
from rlforget.interference.subspace import ConflictSubspace, Pass, conflict_subspace

SCORES = tuple(NEEDS)
"""The names that `conflict(score=...)` takes."""

__all__ = [
    "SCORES",
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "Fisher",
    "KroneckerLayer",
    "KroneckerRule",
    "Pass",
    "SoftRule",
    "combine_fishers",
    "conflict",
    "conflict_subspace",
    "fisher",
    "kronecker_rule",
    "soft_rule",
]
