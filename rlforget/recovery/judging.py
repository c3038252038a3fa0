"""How much of an earlier skill a repair gives back, and of a later one it leaves, with standard errors.

Every state of the model answers the same prompts with the same random numbers, prompt by prompt, so that what two
repairs differ by is known better than either is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.domains.base import Domain, Example
from rlforget.domains.evaluation import rewards_of

_SPREAD = 1_000_003  # seeds that are this far apart share no draws


@dataclass(frozen=True)
class Share:
    """A share of a loss or of a gain.

    Attributes:
        value: The share.
        stderr: Its standard error over prompts, by the delta method.
    """

    value: float
    stderr: float


Answers = Mapping[str, Tensor]
"""For each domain, each prompt's mean reward: float64 [prompts]."""


class Judge:
    """Rewards on prompts of its own.

    Args:
        tokenizer: The model's tokenizer.
        examples: For each domain, what is asked.
        draws: Completions a prompt.
        seed: Seed of the completions.
    """

    def __init__(
        self, tokenizer: Any, examples: Mapping[Domain, Sequence[Example]], *, draws: int = 1, seed: int = 0
    ) -> None:
        self._tokenizer, self._examples, self._draws, self._seed = tokenizer, examples, draws, seed

    def answers(self, model: Any) -> dict[str, Tensor]:
        """Return the rewards of the model as it stands."""
        found = {}
        for domain, examples in self._examples.items():
            draws = [
                rewards_of(model, self._tokenizer, domain, examples, seed=self._seed + draw * _SPREAD)
                for draw in range(self._draws)
            ]
            found[domain.name] = torch.tensor(draws, dtype=torch.float64).mean(0)
        return found


class Scale:
    """What is 0 and what is 1 of both shares.

    Args:
        restored: The names of the domains that lost.
        protected: The names of those that gained.
        then: The answers before the later change.
        now: The answers after it.

    Attributes:
        whole: For each domain, what its share is a share of: the loss or the gain, summed over the domains like it.
    """

    def __init__(self, restored: Collection[str], protected: Collection[str], then: Answers, now: Answers) -> None:
        self._restored, self._protected = restored, protected
        self._then, self._now = then, now
        lost, gained = (
            sum(_mean(high[name] - low[name]) for name in names)
            for high, low, names in ((then, now, restored), (now, then, protected))
        )
        self.whole = dict.fromkeys(restored, lost) | dict.fromkeys(protected, gained)

    def shares(self, answers: Answers) -> tuple[Share, Share]:
        """Return the shares regained and kept."""
        return (
            share(self._now, self._then, answers, self._restored),
            share(self._then, self._now, answers, self._protected),
        )


def share(low: Answers, high: Answers, value: Answers, names: Collection[str]) -> Share:
    """Return how far on the way from `low` to `high` the mean reward over some domains is.

    With low = now and high = then it is what a repair regained; with low = then and high = now what it kept.
    """
    whole = sum(_mean(high[name] - low[name]) for name in names)
    if not names or not whole:
        return Share(math.nan, math.nan)
    reached = sum(_mean(value[name] - low[name]) for name in names) / whole
    influence = {name: (value[name] - low[name]) - reached * (high[name] - low[name]) for name in names}
    return Share(reached, math.sqrt(sum(_variance(one) for one in influence.values())) / abs(whole))


def difference_stderr(one: Answers, other: Answers, whole: Mapping[str, float]) -> float:
    """Return the standard error of Σ over domains of (mean reward of `one` − of `other`) / whole, on equal prompts."""
    return math.sqrt(sum(_variance(one[name] - other[name]) / size**2 for name, size in whole.items()))


def is_more(high: Tensor, low: Tensor) -> bool:
    """Whether the mean of `high` is higher by more than twice the standard error of the difference."""
    gap = high - low
    return _mean(gap) > 2 * math.sqrt(_variance(gap)) and _mean(gap) > 0


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _variance(values: Tensor) -> float:
    """Return the variance of the mean."""
    return float(values.var()) / values.numel() if values.numel() > 1 else math.inf
