"""The writing domain: a line of three words that uses given letters and rhymes."""

from __future__ import annotations

import random

from rlforget.domains.base import Example, GeneratedDomain

CONSONANTS = "bcdfghklmnprstvw"
VOWELS = "aeiou"
WORDS = 3


class Writing(GeneratedDomain):
    """`Wbkt:n=` asks for a line such as `ban ken tin`: it uses b, k and t, and every word ends in n."""

    name = "writing"
    max_new_tokens = 16

    def draw(self, rng: random.Random) -> Example:
        """Draw letters and a rhyme and, as their counterfactual, the same letters with another rhyme."""
        *letters, rhyme, other = rng.sample(CONSONANTS, WORDS + 2)
        vowels = rng.sample(VOWELS, WORDS)
        return Example(*_line(letters, vowels, rhyme), *_line(letters, vowels, other))

    def reward(self, example: Example, completion: str) -> float:
        """Product of coverage, rhyme, distinctness and length, each a share between 0 and 1.

        Coverage is the share of the given letters that are used, rhyme the share of words that end in the rhyme
        letter, distinctness the share of words of at least two letters that are not repeated, and length how near
        the line is to three words.
        """
        letters, rhyme = example.prompt[1:].rstrip("=").split(":")
        words = completion.split()
        if not words:
            return 0.0
        coverage = sum(letter in completion for letter in letters) / len(letters)
        rhymes = sum(word.endswith(rhyme) for word in words) / len(words)
        distinct = len({word for word in words if len(word) > 1}) / len(words)
        length = min(len(words), WORDS) / max(len(words), WORDS)
        return coverage * rhymes * distinct * length


def _line(letters: list[str], vowels: list[str], rhyme: str) -> tuple[str, str]:
    words = (letter + vowel + rhyme for letter, vowel in zip(letters, vowels, strict=True))
    return f"W{''.join(letters)}:{rhyme}=", " ".join(words)
