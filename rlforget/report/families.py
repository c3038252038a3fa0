"""What sort of repair a rule is: what is to be shown, and what it is to be held against."""

from __future__ import annotations

from enum import Enum


class Family(Enum):
    """What sort of repair a rule is."""

    SUBSPACE = "conflict subspace"
    SCORE = "other conflict scores"
    TRAINING = "training again"
    CONTROL = "controls"


_FAMILIES = {
    "dense subspace": Family.SUBSPACE,
    "subspace": Family.SUBSPACE,
    "refresh": Family.TRAINING,
    "magnitude": Family.CONTROL,
    "random": Family.CONTROL,
    "random subspace": Family.CONTROL,
    "opposed": Family.CONTROL,  # worse than random in every sequence tried, as is `taylor` on a model's own samples
    "taylor": Family.CONTROL,
}


def family_of(rule: str) -> Family:
    """Return the family of a rule; one that is not known is taken for a score."""
    return _FAMILIES.get(rule, Family.SCORE)
