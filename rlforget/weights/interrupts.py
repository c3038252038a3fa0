"""Work that Ctrl-C does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def deferring_interrupts(work: Callable[[], T]) -> T:
    """Return what `work` returns; a Ctrl-C that comes meanwhile takes effect when it has ended.

    Only the main thread is ever interrupted, so elsewhere this just calls `work`.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is None:
        return work()
    arrived: list[int] = []
    try:
        try:
            signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
            return work()
        finally:
            signal.signal(signal.SIGINT, usual)
    finally:
        # Once more, for an exception from elsewhere (another signal's handler) at the very line above.
        signal.signal(signal.SIGINT, usual)
        if arrived:
            signal.raise_signal(signal.SIGINT)
