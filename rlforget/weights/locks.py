"""Locks that die with their owner: `flock` on the file or folder itself, so that a crash leaves none behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlforget.errors import BusyError, OutputError


def try_lock(path: Path) -> int | None:
    """Lock a file or folder against every other process and thread that does the same.

    Returns:
        A descriptor; closing it unlocks. None where someone else holds the lock, or where another thing has taken the
        place of `path` meanwhile.

    Raises:
        OSError: It is not there, cannot be opened, is a link, or lies on a filesystem without locks.
    """
    # Without O_NONBLOCK, opening a pipe that someone put there would wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is what lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep every other process and thread from writing `folder`, or in it in place.

    Args:
        folder: The folder.
        patience: Seconds to wait for one that does.

    Raises:
        BusyError: One of them does.
        OutputError: The folder cannot be locked: it is not there, or lies on a filesystem without locks.
    """
    descriptor = None
    try:
        until = time.monotonic() + patience
        try:
            while (descriptor := try_lock(folder)) is None and time.monotonic() < until:
                time.sleep(0.05)
        except OSError as error:
            fix = "Check the path, or copy the folder to a local disk."
            raise OutputError(str(folder), expected="a folder to lock", found=str(error), fix=fix) from error
        if descriptor is None:
            raise _busy(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _busy(path: Path) -> BusyError:
    """Build the error for a folder that another process is writing."""
    return BusyError(
        str(path),
        expected="a folder that nobody is writing",
        found="another process at work on it",
        fix="Wait until it has finished.",
    )
