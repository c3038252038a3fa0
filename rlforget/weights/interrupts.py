"""Work that Ctrl-C does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def deferring_interrupts(work: Callable[[], T], otherwise: Callable[[], object] = lambda: None) -> T:
    """Return what `work` returns; a Ctrl-C that comes meanwhile takes effect when it has ended.

    Only the main thread is ever interrupted, so elsewhere this just calls `work`.

    Args:
        work: What is not to be cut in two.
        otherwise: Called before anything goes on that `work` raised, or the Ctrl-C that came meanwhile. Nor does a
            further Ctrl-C cut this in two: it takes effect afterwards.
    """
    usual = signal.getsignal(signal.SIGINT)
    arrived: list[int] = []

    def whole() -> T:
        try:
            result = work()
            while arrived and callable(usual):
                usual(arrived.pop(), None)
            return result
        except BaseException:
            otherwise()
            raise

    if threading.current_thread() is not threading.main_thread() or usual is None:
        return whole()
    try:
        try:
            signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
            return whole()
        finally:
            signal.signal(signal.SIGINT, usual)
    finally:
        # Once more, for an exception from elsewhere (another signal's handler) at the very line above.
        signal.signal(signal.SIGINT, usual)
        if arrived:
            signal.raise_signal(signal.SIGINT)
