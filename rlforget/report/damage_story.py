"""What the damage and its subspace say, as the titles of their plots."""

from __future__ import annotations

import math

from rlforget.report.measured_files import DomainDamage, Subspace
from rlforget.report.wording import number, percent, plural


def damage_finding(found: DomainDamage) -> str:
    """Say what was predicted, and what was measured at the end."""
    predicted = f"{number(found.total.value)} ± {number(found.total.stderr)}"
    said = f"{found.domain}: predicted to lose {predicted} nats a completion"
    if not found.points:
        return said
    last = found.points[-1].rise
    return f"{said}, measured {number(last.value)} ± {number(last.stderr)}"


def map_finding(found: DomainDamage) -> str:
    """Say which tensor holds most of the predicted damage."""
    known = [tensor for tensor in found.tensors if math.isfinite(tensor.damage)]
    whole = sum(tensor.damage for tensor in known)
    if not known or not whole:
        return f"{found.domain}: the predicted damage of {plural(len(found.tensors), 'tensor')}"
    top = max(known, key=lambda tensor: tensor.damage)
    return f"{found.domain}: {top.name} holds {percent(top.damage / whole)} of the predicted damage, the most"


def subspace_finding(found: Subspace) -> str:
    """Say in how few directions the damage lies, and what as many random ones undo."""
    if found.needed is None:
        return "No number of the measured directions carries 90% of the damage"
    said = f"90% of the damage lies in {plural(found.needed, 'direction')}"
    random = [point for point in found.curves["random ones"] if point.directions >= found.needed]
    if not random:
        return said
    return f"{said}; {random[0].directions:,} random ones undo {percent(random[0].explained, 1)} of it"
