"""The math domain: a chain of one-digit sums, answered by its running results."""

from __future__ import annotations

import random

from rlforget.domains.base import Example, GeneratedDomain, share_right

DIGITS = "0123456789"


class Math(GeneratedDomain):
    """`M7+5-4+1=` is answered by `289`: 7+5, then −4, then +1, each modulo 10."""

    name = "math"
    max_new_tokens = 5
    terms = 4

    def draw(self, rng: random.Random) -> Example:
        """Draw a chain and, as its counterfactual, the chain with another first term."""
        first, *rest = (rng.choice(DIGITS) for _ in range(self.terms))
        signs = [rng.choice("+-") for _ in rest]
        other = rng.choice(DIGITS.replace(first, ""))
        return Example(*_chain(first, signs, rest), *_chain(other, signs, rest))

    def reward(self, example: Example, completion: str) -> float:
        """Share of the running results that are right."""
        return share_right(example.answer, completion)


def _chain(first: str, signs: list[str], rest: list[str]) -> tuple[str, str]:
    total, results = int(first), []
    for sign, term in zip(signs, rest, strict=True):
        total = (total + int(term) if sign == "+" else total - int(term)) % 10
        results.append(str(total))
    return f"M{first}" + "".join(s + t for s, t in zip(signs, rest, strict=True)) + "=", "".join(results)
