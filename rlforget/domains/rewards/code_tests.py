"""A completion that has to be a program which passes tests."""

from __future__ import annotations

import ast

from rlforget.domains.base import Example
from rlforget.domains.rewards.fenced import fenced
from rlforget.domains.rewards.sandbox import run

SECONDS = 10.0
MEMORY = 1 << 30


def code_tests(example: Example, completion: str) -> float:
    """The share of the tests that pass after the completion's Python, in a process that can do nothing else.

    The program is the last fenced block, or the whole completion. A test is an `assert` or a call among the statements
    of the reference (of the answer, where there is none); each statement is run in the namespace that the program left,
    and those that are neither count for nothing. A program that raises, runs for more than 10 seconds, takes more than
    1 GiB or ends the process is worth 0.

    The process has no network, cannot write or remove a file, start another process or signal one: see `sandbox`. It
    shares an interpreter with the tests, as in every grader of this kind, and could cheat: by an object that equals
    everything, say, or by looking for the tests' own frames.

    Raises:
        SyntaxError: The tests are no Python, or there are none.
        SandboxError: This machine cannot confine a process.
    """
    statements = ast.parse(example.reference or example.answer).body
    counted = [isinstance(one, ast.Assert) or isinstance(getattr(one, "value", None), ast.Call) for one in statements]
    if not any(counted):
        raise SyntaxError("there are no tests")
    outcome = run(fenced(completion), [ast.unparse(one) for one in statements], seconds=SECONDS, memory=MEMORY)
    return sum(passed for passed, counts in zip(outcome, counted, strict=True) if counts) / sum(counted)
