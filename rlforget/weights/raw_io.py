"""Whole reads and whole writes at a place in a file: the system may do less than it was asked for."""

from __future__ import annotations

import errno
import os

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
