"""One writer at a time: the others wait, but not for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlforget.errors import HistoryError, OutputError
from rlforget.weights.locks import try_lock

LOCK = "history.lock"
_PAUSE = 0.05  # seconds between two tries


@contextmanager
def locked(folder: Path, wait: float) -> Iterator[None]:
    """Hold the lock of a history inside the block. The system lets go of it when the process ends, however it ends.

    Args:
        folder: The history's folder.
        wait: Seconds to wait for another process that holds it.

    Raises:
        HistoryError: The other one is still at it.
        OutputError: The folder cannot be written.
    """
    lock = _acquire(folder, wait)
    try:
        yield
    finally:
        os.close(lock)  # which unlocks it


def _acquire(folder: Path, wait: float) -> int:
    end = time.monotonic() + wait
    path = folder / LOCK
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
            lock = try_lock(path)
        except OSError as fault:
            fix = "Copy the history elsewhere."
            expected = "a history that can be written"
            raise OutputError(str(folder), expected=expected, found=str(fault), fix=fix) from fault
        if lock is not None:
            return lock
        if time.monotonic() >= end:
            raise HistoryError(
                str(folder),
                expected="a history that nobody else is writing to",
                found=f"another process at it, also after {wait:g} s",
                fix="Wait for it to end, and try again; nothing was changed.",
            )
        time.sleep(_PAUSE)
