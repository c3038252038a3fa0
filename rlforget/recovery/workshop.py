"""What the rollbacks of one delta are made from, each piece measured once: Fishers, conflict subspaces, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from rlforget.domains.base import Domain
from rlforget.interference import (
    Conflict,
    ConflictSubspace,
    Fisher,
    conflict,
    conflict_subspace,
    fisher,
    kronecker_rule,
    soft_rule,
)
from rlforget.interference.scores import NEEDS
from rlforget.recovery.candidates import Candidate
from rlforget.recovery.in_place import What

if TYPE_CHECKING:
    from rlforget.delta import Delta

Say = Callable[[str], None]
"""Told what is going to be done, before long work."""


class Workshop:
    """Makes candidates into what `rollback` takes.

    Args:
        model: The model, at the delta's after bits whenever something is made.
        tokenizer: Its tokenizer.
        delta: The later change.
        restore: The domains to restore.
        protect: The domains to spare.
        samples: Completions a domain that everything is measured on.
        seed: Seed of all draws.
        say: Told of every measurement.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        delta: Delta,
        restore: Sequence[Domain],
        protect: Sequence[Domain],
        *,
        samples: int,
        seed: int,
        say: Say,
    ) -> None:
        self._model, self._delta = model, delta
        self._restore, self._protect = list(restore), list(protect)
        self._measuring: dict[str, Any] = {"samples": samples, "seed": seed, "tokenizer": tokenizer}
        self._say = say
        self._subspace, self._fisher, self._conflict = cache(self._solved), cache(self._measured), cache(self._scored)

    def make(self, candidate: Candidate) -> What:
        """Make what is to be rolled back."""
        rule, lam = candidate.rule, 1.0 if candidate.lam is None else candidate.lam
        if rule in ("dense", "dense_twice", "random_subspace"):
            return self._subspace(lam, passes=2 if rule == "dense_twice" else 1, random=rule == "random_subspace")
        if rule == "soft":
            return soft_rule(
                self._delta, earlier=self._fishers(self._restore), later=self._fishers(self._protect), lam=lam
            )
        if rule == "kronecker":
            self._say(f"second moments of every layer, λ = {lam:g}")
            return kronecker_rule(self._model, self._delta, self._restore, self._protect, lam=lam, **self._measuring)
        return self._conflict(rule, lam).top(fraction=candidate.budget)

    def _scored(self, score: str, lam: float) -> Conflict:
        return conflict(
            self._delta,
            score=score,
            earlier=self._fishers(self._restore) if "earlier" in NEEDS[score] else None,
            later=self._fishers(self._protect) if "later" in NEEDS[score] else None,
            subspace=self._subspace(lam, passes=1, random=False) if "subspace" in NEEDS[score] else None,
            epsilon=lam,
            seed=self._measuring["seed"],
        )

    def _solved(self, lam: float, *, passes: int, random: bool) -> ConflictSubspace:
        if not random:
            self._say(f"conflict subspace, λ = {lam:g}, {passes} pass{'es' if passes > 1 else ''}")
        protect = () if random else self._protect
        return conflict_subspace(
            self._model,
            self._delta,
            self._restore,
            protect,
            lam=lam,
            passes=passes,
            random=random,
            **self._measuring,
        )

    def _fishers(self, domains: Sequence[Domain]) -> list[Fisher]:
        return [self._fisher(domain) for domain in domains]

    def _measured(self, domain: Domain) -> Fisher:
        self._say(f"Fisher of {domain.name}")
        return fisher(self._model, domain, self._delta, where="midpoint", **self._measuring)
