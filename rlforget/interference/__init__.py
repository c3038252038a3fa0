"""Interference: which coordinates and directions of a later change hurt an earlier domain."""

from __future__ import annotations

from rlforget.interference.active_routes import Routes, routes
from rlforget.interference.alignment import Alignment, Synergy, synergy
from rlforget.interference.combining import combine_fishers
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.domain_gradients import GradientAlignment, gradient_alignment
from rlforget.interference.empirical_fisher import Fisher, fisher
from rlforget.interference.fewest_coordinates import fewest
from rlforget.interference.kronecker import KroneckerLayer, KroneckerRule, kronecker_rule
from rlforget.interference.measured_damage import DamageCurve, damage_curve
from rlforget.interference.measured_subspace import CurvePoint, GradientSpectrum, MeasuredSubspace
from rlforget.interference.predicted_damage import Damage, DamagePart, damage
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
    "Alignment",
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "CurvePoint",
    "Damage",
    "DamageCurve",
    "DamagePart",
    "Fisher",
    "GradientAlignment",
    "GradientSpectrum",
    "KroneckerLayer",
    "KroneckerRule",
    "MeasuredSubspace",
    "Pass",
    "Route",
    "RouteOverlap",
    "Routes",
    "SoftRule",
    "Synergy",
    "combine_fishers",
    "conflict",
    "conflict_subspace",
    "damage",
    "damage_curve",
    "fewest",
    "fisher",
    "gradient_alignment",
    "kronecker_rule",
    "measure_subspace",
    "routes",
    "soft_rule",
    "synergy",
]
