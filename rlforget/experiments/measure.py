"""Rewards of a model in every domain, and what a repair gives back and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlforget import domains
from rlforget.experiments.settings import EARLIER, LATER, SEQUENCE

Rewards = dict[str, float]


def rewards(model: Any, tokenizer: Any, *, count: int, names: Sequence[str] = SEQUENCE) -> Rewards:
    """Mean sampled reward of each domain on evaluation prompts."""
    return {name: domains.evaluate(model, tokenizer, domains.get(name), count=count).mean for name in names}


def regained(then: Rewards, now: Rewards, repaired: Rewards, names: Sequence[str] = EARLIER) -> float:
    """Share of the earlier domains' lost reward that a repair gave back: Σ(repaired − now) / Σ(then − now)."""
    return _share(now, then, repaired, names)


def kept(then: Rewards, now: Rewards, repaired: Rewards, names: Sequence[str] = LATER) -> float:
    """Share of the later domains' gain that a repair left: Σ(repaired − then) / Σ(now − then)."""
    return _share(then, now, repaired, names)


def _share(low: Mapping[str, float], high: Mapping[str, float], value: Rewards, names: Sequence[str]) -> float:
    whole = sum(high[n] - low[n] for n in names)
    return sum(value[n] - low[n] for n in names) / whole if whole else float("nan")
