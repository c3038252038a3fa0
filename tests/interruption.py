"""Interrupts at a chosen line of running code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupter:
    """Raises KeyboardInterrupt when the `at`-th line of Python is about to run, in whatever file; counts them all.

    Args:
        at: Which line; None: never.
        twice: Send a SIGINT there instead, and one more as soon as anything else runs, as an impatient user would.
    """

    def __init__(self, at: int | None, *, twice: bool = False) -> None:
        self.at, self.twice, self.lines, self.place = at, twice, 0, ""
        self._left = 0 if at is None else 1 + twice

    def __call__(self, frame: FrameType, event: str, _: Any) -> Interrupter:
        if event == "line":
            self.lines += 1
            if self._left and self.at is not None and self.lines > self.at:
                self._strike(frame)
        return self

    def run(self, work: Callable[[], object]) -> bool:
        """Run `work`. Returns whether an interrupt came out of it."""

        def started() -> None:
            work()

        if self.twice:
            sys.setprofile(self._after)
        sys.settrace(self)
        try:
            started()
        except KeyboardInterrupt:
            return True
        finally:
            self._left = 0
            sys.settrace(None)
            sys.setprofile(None)
        return False

    def _after(self, frame: FrameType, event: str, _: Any) -> None:
        """Send the second one, where the first was raised: that ends the tracing of lines, but not of calls."""
        if self._left == 1 and sys.gettrace() is None:
            self._strike(frame)

    def _strike(self, frame: FrameType) -> None:
        self._left -= 1
        self.place = self.place or f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if self.twice:
            signal.raise_signal(signal.SIGINT)
        else:
            raise KeyboardInterrupt
