"""What a domain is: seeded prompts with gold answers, a verifiable reward, and counterfactuals."""

from __future__ import annotations

import math
import random
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from rlforget.errors import EmptyDomainError, RewardError

Split = Literal["train", "eval"]

_EVAL_SHARE = 8  # one prompt in eight belongs to the evaluation set


@dataclass(frozen=True)
class Example:
    """One task.

    Attributes:
        prompt: What the model is given.
        answer: The gold answer, which is also the SFT target. Holds no end-of-sequence token.
        counterfactual: A prompt of the same form whose answer differs, or "" where the domain has none.
        counterfactual_answer: The gold answer of `counterfactual`.
        reference: What the reward checks against where that is not the answer: tests, a JSON Schema, a rubric.
    """

    prompt: str
    answer: str
    counterfactual: str = ""
    counterfactual_answer: str = ""
    reference: str = ""


class Domain(ABC):
    """One skill: a stream of examples and a reward in [0, 1].

    Attributes:
        name: What the domain is called in tables, configurations and logs.
        max_new_tokens: The longest completion that is sampled, in tokens, the end token included.
    """

    name: str
    max_new_tokens: int

    @abstractmethod
    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        """Return `count` examples; the same arguments give the same examples.

        No prompt is in both splits.

        Raises:
            EmptyDomainError: The domain has no example in this split.
        """

    def size(self, split: Split = "train") -> int | None:
        """Return how many different prompts a split has; None where they do not end."""
        return None

    @abstractmethod
    def reward(self, example: Example, completion: str) -> float:
        """Score a completion, without its end token, between 0 and 1."""

    def checked_reward(self, example: Example, completion: str) -> float:
        """Score a completion and hold the score to be a number in [0, 1].

        Raises:
            RewardError: `reward` raised, or returned something else.
        """
        where = f"the reward of domain {self.name!r} on prompt {example.prompt!r}"
        fix = "Mend the reward function."
        try:
            value = self.reward(example, completion)
        except Exception as fault:
            found = f"{type(fault).__name__}: {fault} (completion {completion!r})"
            raise RewardError(where, expected="a number in [0, 1]", found=found, fix=fix) from fault
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, Real) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
            found = f"{value!r} (completion {completion!r})"
            raise RewardError(where, expected="a number in [0, 1]", found=found, fix=fix)
        return float(value)


class GeneratedDomain(Domain):
    """A domain whose examples come from a seeded generator.

    A prompt's hash says which split it belongs to, so training and evaluation are disjoint whatever the seeds.
    """

    @abstractmethod
    def draw(self, rng: random.Random) -> Example:
        """Draw one example."""

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        """Draw `count` examples of `split`."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        found: list[Example] = []
        while len(found) < count:
            example = self.draw(rng)
            if is_eval(example.prompt) == (split == "eval"):
                found.append(example)
        return found


def is_eval(prompt: str) -> bool:
    """Whether a prompt belongs to the evaluation split, by its hash."""
    return zlib.crc32(prompt.encode()) % _EVAL_SHARE == 0


def empty(name: str, split: Split) -> EmptyDomainError:
    """Build the error for a domain without examples."""
    return EmptyDomainError(
        f"domain {name!r}",
        expected=f"at least one example in split {split!r}",
        found="none",
        fix="Add examples (one in eight goes to the evaluation split, by the hash of its prompt).",
    )


def share_right(answer: str, completion: str) -> float:
    """Share of characters that are right, in place; characters too many or too few count as wrong."""
    longest = max(len(answer), len(completion))
    return sum(a == c for a, c in zip(answer, completion, strict=False)) / longest if longest else 1.0
