"""What the rollbacks of one delta are made from, each piece measured once: Fishers, conflict subspaces, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from rlforget.domains.base import Domain
from rlforget.interference import Conflict, ConflictSubspace, Coordinates, Fisher, conflict, conflict_subspace, fisher
from rlforget.recovery.candidates import Candidate

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
        self._model, self._tokenizer, self._delta = model, tokenizer, delta
        self._restore, self._protect = list(restore), list(protect)
        self._samples, self._seed, self._say = samples, seed, say
        self.subspace, self._fisher, self._scored = cache(self._subspace), cache(self._measured), cache(self._conflict)

    def make(self, candidate: Candidate) -> Coordinates | ConflictSubspace:
        """Make what is to be rolled back."""
        if candidate.rule == "random_subspace":
            return self.subspace(1.0, 1, random=True)
        if candidate.rule in ("dense", "dense_twice"):
            return self.subspace(candidate.lam, 1 if candidate.rule == "dense" else 2)
        return self._scored(candidate.rule, candidate.lam).top(fraction=candidate.budget)

    def _conflict(self, score: str, lam: float | None) -> Conflict:
        needs_both = score == "two_fisher"
        return conflict(
            self._delta,
            score=score,
            earlier=[self._fisher(one) for one in self._restore] if needs_both or score == "fisher" else None,
            later=[self._fisher(one) for one in self._protect] if needs_both else None,
            subspace=self.subspace(lam, 1) if score == "subspace" else None,
            seed=self._seed,
            epsilon=lam if needs_both and lam is not None else 1.0,
        )

    def _subspace(self, lam: float | None, passes: int, *, random: bool = False) -> ConflictSubspace:
        if not random:
            self._say(f"conflict subspace, λ = {lam:g}, {passes} pass{'es' if passes > 1 else ''}")
        return conflict_subspace(
            self._model,
            self._delta,
            self._restore,
            () if random else self._protect,
            samples=self._samples,
            lam=1.0 if lam is None else lam,
            passes=passes,
            seed=self._seed,
            tokenizer=self._tokenizer,
            random=random,
        )

    def _measured(self, domain: Domain) -> Fisher:
        self._say(f"Fisher of {domain.name}")
        return fisher(
            self._model,
            domain,
            self._delta,
            samples=self._samples,
            seed=self._seed,
            tokenizer=self._tokenizer,
            where="midpoint",
        )
