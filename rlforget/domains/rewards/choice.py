"""A completion that has to pick the right letter."""

from __future__ import annotations

import re

from rlforget.domains.base import Example

_LETTER = r"(?:[(\[]([A-Za-z])[)\]]|([A-HJ-Z])(?![\w'’])|(I)(?=\s*(?:[.,;:)*]|$)))"
"""A letter in brackets, or a capital; I alone is a word, unless nothing goes on after it."""
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}")
_ANSWER = re.compile(rf"\banswer\b[\s*_]*(?:is|:|=)?[\s:*_]*{_LETTER}", re.IGNORECASE)
_ALONE = re.compile(rf"(?<![\w'’]){_LETTER}")


def multiple_choice(example: Example, completion: str) -> float:
    r"""1 where the completion picks the answer's letter, else 0.

    The pick is the last `\boxed{C}`; else the last letter after "answer"; else the only letter that stands alone as a
    capital, or in brackets. A completion that names several letters and says of none that it is the answer picks none:
    a model that lists all of them is not right.

    Raises:
        ValueError: The answer is no letter.
    """
    answer = picked(example.reference or example.answer)
    if answer is None:
        raise ValueError(f"the answer {example.reference or example.answer!r} names no single letter")
    return float(picked(completion) == answer)


def picked(text: str) -> str | None:
    """Return the capital letter that a text picks; None where it picks none, or several."""
    if re.fullmatch(r"\s*[A-Za-z]\s*", text):
        return text.strip().upper()
    if boxed := _BOXED.findall(text):
        return str(boxed[-1]).upper()
    stated = [letter for found in _ANSWER.finditer(text) if (letter := _letter(found)).isupper() or "(" in found[0]]
    if stated:
        return stated[-1].upper()
    alone = {_letter(found).upper() for found in _ALONE.finditer(text)}
    return alone.pop() if len(alone) == 1 else None


def _letter(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group)
