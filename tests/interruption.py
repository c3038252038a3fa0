"""Exceptions raised at a chosen line of running code, as a signal's handler would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupter:
    """Raises KeyboardInterrupt when the `at`-th line of Python is about to run, in whatever file; counts them all.

    Args:
        at: Which line; None: never.
        twice: Raise at the line after as well, as an impatient user would.
    """

    def __init__(self, at: int | None) -> None:
        self.at, self.lines, self.place = at, 0, ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> Interrupter:
        if event == "line":
            self.lines += 1
            if self.lines - 1 == self.at:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self

    def run(self, work: Callable[[], object]) -> bool:
        """Run `work`. Returns whether the interrupt came out of it."""

        def started() -> None:
            work()

        sys.settrace(self)
        try:
            started()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False
