"""The safetensors file around a delta: two arrays of bytes, `frames` and `table`, and three strings of metadata."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import Any

FORMAT = "rlforget.delta"
VERSION = "1"

_PREFIX = 8  # bytes of the header's length
RESERVED = 280
"""Bytes that any header fits in. It is written last, but the frames go behind it."""

_MOST_HEADER = 1 << 16
_MOST_TABLE = 1 << 27


class ContainerError(ValueError):
    """What is wrong with a container."""


@dataclass(frozen=True)
class Container:
    """Where the parts of a delta file lie.

    Attributes:
        frames: Position in the file of the first byte of the frames.
        table: Position of the first byte of the table, which is that after the last one of the frames.
        end: Position after the table: the size of the file.
        checksum: xxh3_64 of the table.
    """

    frames: int
    table: int
    end: int
    checksum: int


def header(frames: int, table: bytes, size: int = 0) -> bytes:
    """Return the header of a file with so many bytes of frames and then this table, filled up to `size` bytes."""
    text = json.dumps(
        {
            "__metadata__": {"format": FORMAT, "version": VERSION, "checksum": f"{checksum(table):016x}"},
            "frames": _array(0, frames),
            "table": _array(frames, frames + len(table)),
        },
        separators=(",", ":"),
    ).encode("ascii")
    text = text.ljust(size - _PREFIX)
    return len(text).to_bytes(_PREFIX, "little") + text


def _array(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


def checksum(data: bytes) -> int:
    """Return xxh3_64 of `data`."""
    import xxhash

    return xxhash.xxh3_64_intdigest(data)


def read_container(descriptor: int) -> Container:
    """Read and check the header of an open file.

    Raises:
        ContainerError: It is no such file, is truncated, or of another version.
        OSError: It cannot be read.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ContainerError("no regular file")
    size = status.st_size
    length = int.from_bytes(os.pread(descriptor, _PREFIX, 0), "little")
    if size < _PREFIX or not 2 <= length <= min(_MOST_HEADER, size - _PREFIX):
        raise ContainerError("no header of a delta file")
    try:
        described = json.loads(os.pread(descriptor, length, _PREFIX))
    except (ValueError, RecursionError) as error:
        raise ContainerError(f"a header that is no JSON: {error}") from error
    strings = described.get("__metadata__") if isinstance(described, dict) else None
    if not isinstance(strings, dict) or strings.get("format") != FORMAT:
        raise ContainerError("a safetensors file that holds no delta")
    if strings.get("version") != VERSION:
        raise ContainerError(f"version {strings.get('version')!r:.99}")
    if described.keys() != {"__metadata__", "frames", "table"} or strings.keys() != {"format", "version", "checksum"}:
        raise ContainerError("other arrays than frames and table")
    data = _PREFIX + length
    middle = _stop(described["frames"], 0)
    end = _stop(described["table"], middle)
    if data + end != size or end - middle > _MOST_TABLE:
        raise ContainerError(f"{size} bytes in place of {data + end}")
    return Container(data, data + middle, size, _number(strings["checksum"]))


def _stop(array: Any, start: int) -> int:
    """Return where an array of bytes ends that begins at `start`."""
    offsets = array.get("data_offsets") if isinstance(array, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(place) is int for place in offsets):
        raise ContainerError("an array without its offsets")
    stop: int = offsets[1]
    if stop < start or array != _array(start, stop):
        raise ContainerError("arrays that do not follow one another")
    return stop


def _number(text: Any) -> int:
    if not (isinstance(text, str) and len(text) == 16 and set(text) <= set("0123456789abcdef")):
        raise ContainerError("no checksum")
    return int(text, 16)
