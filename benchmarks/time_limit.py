"""A limit on the time of what cannot be asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _OutOfTime(BaseException):
    """No `Exception`: what is stopped must not take it for a fault of its own, and go on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what the block does after so many seconds. In the main thread alone, and not inside another limit.

    Raises:
        TimeoutError: It was stopped.
    """

    def stop(*_: Any) -> None:
        raise _OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"not done in {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
