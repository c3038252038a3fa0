"""Whole reads and whole writes at a place in a file: the system may do less than it was asked for."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

_MOST = 1 << 30  # bytes a call; Linux does 2 GiB at most


def read_fully(descriptor: int, buffer: memoryview, place: int) -> None:
    """Fill `buffer` with the bytes from `place` on.

    Raises:
        OSError: It cannot be read, or ends before.
    """
    while buffer:
        count = os.preadv(descriptor, [buffer[:_MOST]], place)
        if count == 0:
            raise OSError(errno.EIO, f"a file that ends at {place}, {len(buffer)} bytes early")
        buffer, place = buffer[count:], place + count


def read_bytes(descriptor: int, count: int, place: int) -> bytes:
    """Return `count` bytes from `place` on; see `read_fully`."""
    data = bytearray(count)
    read_fully(descriptor, memoryview(data), place)
    return bytes(data)


def write_fully(descriptor: int, buffer: memoryview, place: int) -> None:
    """Write all of `buffer` at `place`.

    Raises:
        OSError: It cannot be written.
    """
    while buffer:
        count = os.pwrite(descriptor, buffer[:_MOST], place)
        if count == 0:
            raise OSError(errno.EIO, "a write that wrote nothing")
        buffer, place = buffer[count:], place + count


def begin_writeback(descriptor: int, place: int, size: int) -> None:
    """Let the system start to write to the disk what was written at a place, so that a later sync finds less to do.

    Linux does so on being told that the range is not needed again; what is not on the disk yet it keeps all the same.
    It is a hint: a file system that does not take it is no fault.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, place, size, os.POSIX_FADV_DONTNEED)
