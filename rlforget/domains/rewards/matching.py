"""A completion that has to be the answer."""

from __future__ import annotations

from rlforget.domains.base import Example


def exact_match(example: Example, completion: str) -> float:
    """1 where the completion equals the answer but for surrounding white space, else 0."""
    return float(completion.strip() == example.answer.strip())
