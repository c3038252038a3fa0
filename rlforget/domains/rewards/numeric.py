"""A completion whose last number has to be the answer."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from rlforget.domains.base import Example

_NUMBER = re.compile(
    r"""
    (?<![\w.]) [-+−]? (?:
        \d{1,3}(?:,\d{3})+(?:\.\d+)?   # 1,234,567.8
      | \d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?  # 12, 1.5, 2e-3
      | \.\d+                          # .5
    )
    (?:\s*/\s*\d+)?                    # 3/4
    \s?%?
    """,
    re.VERBOSE,
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([-+−]?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_TOLERANCE = Fraction(1, 10**6)


def numeric(example: Example, completion: str) -> float:
    r"""1 where the last number of the completion equals that of the answer, else 0.

    What stands in a last `\boxed{}` goes before what stands elsewhere. Thousands' commas, fractions, exponents and
    percentages are read; numbers are compared as fractions, within a millionth of the answer where either is written
    with a decimal point, an exponent or a percent sign.

    Raises:
        ValueError: The answer holds no number.
    """
    answer = last_number(example.reference or example.answer)
    if answer is None:
        raise ValueError(f"the answer {example.reference or example.answer!r} holds no number")
    found = last_number(completion)
    return float(found is not None and same(found, answer))


class Number(NamedTuple):
    """A number as it was written.

    Attributes:
        value: It, exactly.
        rounded: Whether it may be: it has a decimal point, an exponent or a percent sign.
    """

    value: Fraction
    rounded: bool


def same(found: Number, answer: Number) -> bool:
    """Return whether two numbers are equal, or within a millionth of the answer where one of them is rounded."""
    difference = abs(found.value - answer.value)
    if not (found.rounded or answer.rounded):
        return difference == 0
    return difference <= _TOLERANCE * abs(answer.value)


def last_number(text: str) -> Number | None:
    """Return the last number of a text; None where there is none, or its denominator is zero."""
    plain = _LATEX_FRACTION.sub(r"\1/\2", text)
    boxed = _BOXED.findall(plain)
    for part in ([boxed[-1]] if boxed else []) + [plain]:
        numbers = _NUMBER.findall(part)
        if numbers:
            return _number(numbers[-1])
    return None


def whole_number(text: str) -> Number | None:
    """Return the number that a text is and nothing beside; None where it is something else."""
    plain = _LATEX_FRACTION.sub(r"\1/\2", text.strip())
    return _number(plain) if _NUMBER.fullmatch(plain) else None


def _number(text: str) -> Number | None:
    plain = text.replace(",", "").replace("−", "-").replace(" ", "")
    percent = plain.endswith("%")
    over, _, under = plain.rstrip("%").partition("/")
    try:
        value = Fraction(over) / (Fraction(under) if under else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return Number(value / 100 if percent else value, percent or any(sign in plain for sign in ".eE"))
