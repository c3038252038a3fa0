"""A completion that has to be a program which turns given inputs into given outputs."""

from __future__ import annotations

import json
from typing import Any

from rlforget.domains.base import Example
from rlforget.domains.rewards.code_tests import MEMORY, SECONDS
from rlforget.domains.rewards.fenced import fenced
from rlforget.domains.rewards.sandbox import run

_RUN = """
import io, sys
def printed(program, given, run=exec):
    held, sys.stdin, sys.stdout = (sys.stdin, sys.stdout), io.StringIO(given), io.StringIO()
    try:
        try:
            run(program, {"__name__": "__main__"})
        except SystemExit:
            pass
        return sys.stdout.getvalue()
    finally:
        sys.stdin, sys.stdout = held
"""


def program_output(example: Example, completion: str) -> float:
    """The share of the inputs for which the completion's Python prints the right output, confined as `code_tests`.

    The reference is JSON: a list of objects with `input` and `output`, or an object with the lists `inputs` and
    `outputs`; other keys are left alone. Outputs are compared line by line, without trailing white space.

    Raises:
        ValueError: The reference is of another form, or holds no pair.
        SandboxError: This machine cannot confine a process.
    """
    pairs = _pairs(example.reference or example.answer)
    program = fenced(completion)
    tests = [
        f"assert [line.rstrip() for line in printed({program!r}, {given!r}).rstrip().splitlines()] == "
        f"{[line.rstrip() for line in wanted.rstrip().splitlines()]!r}"
        for given, wanted in pairs
    ]
    return sum(run(_RUN, tests, seconds=SECONDS, memory=MEMORY)) / len(pairs)


def _pairs(reference: str) -> list[tuple[str, str]]:
    try:
        held: Any = json.loads(reference)
        if isinstance(held, dict):
            pairs = list(zip(held["inputs"], held["outputs"], strict=True))
        else:
            pairs = [(row["input"], row["output"]) for row in held]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"the reference {reference[:80]!r} holds no inputs and outputs: {fault!r}") from fault
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ValueError(f"the reference {reference[:80]!r} holds no pair of texts")
    return pairs
