"""The lines that the miniature is pretrained on."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, replace

from rlforget.domains.arithmetic import DIGITS, Math
from rlforget.domains.base import GeneratedDomain
from rlforget.domains.code import Code
from rlforget.domains.qa import QA, VALUES
from rlforget.domains.science import Science
from rlforget.domains.writing import Writing

DOMAINS: dict[str, GeneratedDomain] = {d.name: d for d in (Code(), Math(), QA(), Writing(), Science())}
_ALPHABET = DIGITS + "abcdefghABCDEFGHKNOPS"
_ASKED = 12  # look-ups in a line of pairs


@dataclass(frozen=True)
class Line:
    """One training line.

    Attributes:
        text: Its characters.
        scored: Positions in `text` whose prediction counts.
        ends: Whether the end token after `text` is scored too.
    """

    text: str
    scored: tuple[int, ...]
    ends: bool


def draw(rng: random.Random, kind: str, count: int) -> list[Line]:
    """Draw `count` lines of one kind: a domain's name, `lookups`, `pairs` or `sums`."""
    if kind in DOMAINS:
        examples = DOMAINS[kind].examples(count, seed=rng.getrandbits(48))
        return [_answered(e.prompt, e.answer) for e in examples]
    one = {"lookups": _lookups, "pairs": _pairs, "sums": _sum}[kind]
    return [one(rng) for _ in range(count)]


def corrupt(rng: random.Random, line: Line) -> Line:
    """Replace every scored character by a random one of its class."""
    characters = list(line.text)
    for position in line.scored:
        pool = next((p for p in (DIGITS, string.ascii_lowercase, VALUES) if characters[position] in p), None)
        if pool is not None:
            characters[position] = rng.choice(pool)
    return replace(line, text="".join(characters))


def _answered(prompt: str, answer: str) -> Line:
    return Line(prompt + answer, tuple(range(len(prompt), len(prompt) + len(answer))), ends=True)


def _lookups(rng: random.Random) -> Line:
    """All four questions of a qa prompt, one after another, in shuffled order."""
    pairs = list(zip(rng.sample(DIGITS, QA.facts), rng.sample(VALUES, QA.facts), strict=True))
    stem = "Q" + "".join(key + value for key, value in pairs) + "="
    return _recall(stem, [], rng.sample(pairs, len(pairs)))


def _pairs(rng: random.Random) -> Line:
    """A list of pairs over a wide alphabet, then twelve of them asked again.

    Lists of several lengths and many look-ups a line are what makes the look-up circuit form: on qa lines alone the
    loss stays at that of guessing among the listed values.
    """
    keys = rng.sample(_ALPHABET, rng.choice((4, 6, 8)))
    pairs = [(key, rng.choice(_ALPHABET)) for key in keys]
    again = [pair for _ in range(_ASKED) for pair in rng.sample(pairs, len(pairs))]
    return _recall("", pairs, again[:_ASKED])


def _recall(start: str, pairs: list[tuple[str, str]], again: list[tuple[str, str]]) -> Line:
    stem = start + "".join(key + value for key, value in pairs)
    text = stem + "".join(key + value for key, value in again)
    return Line(text, tuple(range(len(stem) + 1, len(text), 2)), ends=False)


def _sum(rng: random.Random) -> Line:
    """One sum of two digits, modulo 10."""
    a, b, sign = rng.randrange(10), rng.randrange(10), rng.choice("+-")
    return _answered(f"{a}{sign}{b}=", str((a + b if sign == "+" else a - b) % 10))
