"""The sections of the suite: what each measures, in which order, and in how many seconds."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import Cases, discover
from benchmarks.report.bars import BARS


@dataclass(frozen=True)
class Section:
    """A part of the suite, which runs in a process of its own.

    Attributes:
        seconds: Its share of the time: of what is left when it begins, beside the shares of those that come after.
        cases: Finds its cases, those that matter most first: there may be no time for the last.
    """

    seconds: float
    cases: Callable[[], Cases]


def _of(module: str) -> Callable[[], Cases]:
    def cases() -> Cases:
        found: Cases = importlib.import_module(f"benchmarks.gpu.{module}").CASES
        return found

    return cases


def _operators() -> Cases:
    """Every operator's cases, those first that a bar is about."""
    found = discover()
    asked = [(bar.operator, bar.case) for bar in BARS]
    return {name: found[name] for name in sorted(found, key=lambda name: name not in asked)}


SECTIONS = {
    "model": Section(130, _of("whole_model")),
    "fisher": Section(50, _of("fisher")),
    "subspace": Section(100, _of("subspace")),
    "operators": Section(230, _operators),
}
TOTAL = 510.0
"""Seconds for all of them, which leaves half a minute of the nine minutes that the suite may take."""
