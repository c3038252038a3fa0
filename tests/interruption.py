"""Interrupts at a chosen line of running code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch


class Interrupter:
    """Raises KeyboardInterrupt when the `at`-th line of Python is about to run, in whatever file; counts them all.

    Args:
        at: Which line; None: never.
        twice: Send a SIGINT there instead, and one more as soon as that has taken effect and anything else runs, as an
            impatient user would.
    """

    def __init__(self, at: int | None, *, twice: bool = False) -> None:
        self.at, self.twice, self.lines, self.place = at, twice, 0, ""
        self._due = at is not None  # whether the next interrupt may come
        self._sent = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Interrupter | None:
        if frame.f_code.co_filename == __file__:
            return None
        if event == "line":
            self.lines += 1
            if self._due and self.at is not None and self.lines > self.at:
                self._strike(frame)
        return self

    def run(self, work: Callable[[], object]) -> bool:
        """Run `work`. Returns whether an interrupt came out of it."""

        def started() -> None:
            work()

        usual, differentiating = signal.signal(signal.SIGINT, self._interrupt), torch.is_grad_enabled()
        if self.twice:
            sys.setprofile(self._after)
        sys.settrace(self)
        try:
            started()
        except KeyboardInterrupt:
            return True
        finally:
            self._due = False
            sys.settrace(None)
            sys.setprofile(None)
            left = signal.signal(signal.SIGINT, usual)
            torch.set_grad_enabled(differentiating)  # an interrupt between the lines of `torch.no_grad` leaves it on
            assert left == self._interrupt  # whoever takes the signal gives it back
        return False

    def _after(self, frame: FrameType, event: str, _: Any) -> None:
        """Send the second one, where the first was raised at its line: that ends the tracing of lines, not of calls."""
        if self._due and self._sent and sys.gettrace() is None:
            self._strike(frame)

    def _strike(self, frame: FrameType) -> None:
        self._due, self._sent = False, self._sent + 1
        self.place = self.place or f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if not self.twice:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._due = self._sent == 1
        raise KeyboardInterrupt
