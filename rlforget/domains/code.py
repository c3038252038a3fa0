"""The code domain: a three-line program, answered by the values of its variables."""

from __future__ import annotations

import random

from rlforget.domains.base import Example, GeneratedDomain, share_right

NAMES = "abcdefgh"


class Code(GeneratedDomain):
    """`Xa=3;b=a+4;c=b-2=` is answered by `375`: the value of each variable in turn, modulo 10."""

    name = "code"
    max_new_tokens = 5
    lines = 3

    def draw(self, rng: random.Random) -> Example:
        """Draw a program and, as its counterfactual, the program with another first value."""
        names = rng.sample(NAMES, self.lines)
        steps = [(rng.randrange(line), rng.choice("+-"), rng.randrange(10)) for line in range(1, self.lines)]
        first = rng.randrange(10)
        other = (first + rng.randrange(1, 10)) % 10
        return Example(*_program(names, first, steps), *_program(names, other, steps))

    def reward(self, example: Example, completion: str) -> float:
        """Share of the values that are right."""
        return share_right(example.answer, completion)


def _program(names: list[str], first: int, steps: list[tuple[int, str, int]]) -> tuple[str, str]:
    values, lines = [first], [f"{names[0]}={first}"]
    for name, (source, sign, term) in zip(names[1:], steps, strict=True):
        values.append((values[source] + term if sign == "+" else values[source] - term) % 10)
        lines.append(f"{name}={names[source]}{sign}{term}")
    return f"X{';'.join(lines)}=", "".join(map(str, values))
