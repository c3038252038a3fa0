"""Interference: which coordinates and directions of a later change hurt an earlier domain."""

from __future__ import annotations

from rlforget.interference.active_routes import Routes, routes
from rlforget.interference.combining import combine_fishers
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.empirical_fisher import Fisher, fisher
from rlforget.interference.fewest_coordinates import fewest
from rlforget.interference.kronecker import KroneckerLayer, KroneckerRule, kronecker_rule
from rlforget.interference.measured_subspace import CurvePoint, GradientSpectrum, MeasuredSubspace
from rlforget.interference.route import Route, RouteOverlap
from rlforget.interference.scores import NEEDS, conflict
from rlforget.interference.selection import Conflict
from rlforget.interference.soft import SoftRule, soft_rule
from rlforget.interference.spectrum import measure_subspace
from rlforget.interference.subspace import ConflictSubspace, Pass, conflict_subspace

SCORES = tuple(NEEDS)
"""The names that `conflict(score=...)` takes."""

__all__ = [
    "SCORES",
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "CurvePoint",
    "Fisher",
    "GradientSpectrum",
    "KroneckerLayer",
    "KroneckerRule",
    "MeasuredSubspace",
    "Pass",
    "Route",
    "RouteOverlap",
    "Routes",
    "SoftRule",
    "combine_fishers",
    "conflict",
    "conflict_subspace",
    "fewest",
    "fisher",
    "kronecker_rule",
    "measure_subspace",
    "routes",
    "soft_rule",
]
