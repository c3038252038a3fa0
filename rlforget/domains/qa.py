"""The qa domain: look a fact up in a list given in the prompt."""

from __future__ import annotations

import random

from rlforget.domains.base import Example, GeneratedDomain, share_right

VALUES = "ABCDEFGH"


class QA(GeneratedDomain):
    """`Q3A7C1B9D=7` is answered by `C`: the letter that stands after the asked digit."""

    name = "qa"
    max_new_tokens = 3
    facts = 4

    def draw(self, rng: random.Random) -> Example:
        """Draw a list and a question and, as their counterfactual, another question on the same list."""
        keys = rng.sample("0123456789", self.facts)
        values = rng.sample(VALUES, self.facts)
        asked, other = rng.sample(range(self.facts), 2)
        stem = "Q" + "".join(k + v for k, v in zip(keys, values, strict=True)) + "="
        return Example(stem + keys[asked], values[asked], stem + keys[other], values[other])

    def reward(self, example: Example, completion: str) -> float:
        """1 for the right letter alone, less for each character that follows it."""
        return share_right(example.answer, completion)
