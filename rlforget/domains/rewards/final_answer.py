r"""A completion whose `\boxed{}` has to be the answer."""

from __future__ import annotations

import re

from rlforget.domains.base import Example
from rlforget.domains.rewards.numeric import same, whole_number

_NOISE = re.compile(r"\\(?:(?:left|right|displaystyle|quad)(?![A-Za-z])|[,;!])|\\text\s*\{\s*\}|[\s$]|\.$")


def final_answer(example: Example, completion: str) -> float:
    r"""1 where the last `\boxed{}` of the completion holds the answer, else 0.

    Two that are numbers are compared as `numeric` does, everything else as text, without spaces, dollar signs and what
    LaTeX has for looks alone. Two ways of writing one expression are two answers: where that matters, name a reward of
    your own that asks a computer algebra.
    """
    found = _boxed(completion)
    if found is None:
        return 0.0
    wanted = _boxed(example.reference or example.answer) or example.reference or example.answer
    ours, theirs = _plain(found), _plain(wanted)
    if ours == theirs:
        return 1.0
    one, other = whole_number(ours), whole_number(theirs)
    return float(one is not None and other is not None and same(one, other))


def _boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{}` holds, braces within it balanced; None where there is none, or no end."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def _plain(text: str) -> str:
    return _NOISE.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
