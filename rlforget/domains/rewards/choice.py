"""A completion that has to pick the right letter."""

from __future__ import annotations

import re

from rlforget.domains.base import Example

_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}")
_STATED = re.compile(r"(?:answer|option|choice)\s*(?:is|:|=)?\s*\**\s*\(?\[?([A-Za-z])\b", re.IGNORECASE)
_ALONE = re.compile(r"(?<![\w'])\(?([A-Z])\)?(?:[.:)]|\b)(?!['’\w])")


def multiple_choice(example: Example, completion: str) -> float:
    r"""1 where the completion picks the answer's letter, else 0.

    The pick is the last `\boxed{C}`; else the last letter after "answer", "option" or "choice"; else the only letter
    that stands alone as a capital. A completion that names several letters and says of none that it is the answer picks
    none: a model that lists all of them is not right.

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
    for pattern in (_BOXED, _STATED):
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    alone = {letter for letter in _ALONE.findall(text) if letter != "I"}
    return alone.pop() if len(alone) == 1 else None
