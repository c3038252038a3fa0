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

    The program is the last fenced block, or the whole completion. A test is a statement of the reference (of the
    answer, where there is none), an `assert` say; each is run in the namespace that the program left. A program that
    raises, runs for more than 10 seconds, takes more than 1 GiB or ends the process is worth 0.

    The process has no network, cannot write or remove a file, start another process or signal one: see `sandbox`. A
    program that looks for the tests' own frames could still cheat, as in every grader that shares an interpreter.

    Raises:
        SyntaxError: The tests are no Python, or there are none.
        SandboxError: This machine cannot confine a process.
    """
    tests = _statements(example.reference or example.answer)
    outcome = run(fenced(completion), tests, seconds=SECONDS, memory=MEMORY)
    return sum(outcome) / len(tests)


def _statements(source: str) -> list[str]:
    found = [ast.unparse(statement) for statement in ast.parse(source).body]
    if not found:
        raise SyntaxError("there are no tests")
    return found
