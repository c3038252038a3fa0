"""The files of a checkpoint, opened to be read and written in place: by offsets, never through a memory map.

A store through a map that meets a failing disk kills the process; a write returns an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rlforget.errors import OutputError, WrongBaseError
from rlforget.weights.journal import Bits, Piece, Place, ShardIdentity
from rlforget.weights.raw_io import read_fully, write_fully
from rlforget.weights.safetensors_file import Header


class Shards:
    """Some files of a checkpoint folder, held open.

    Args:
        folder: Where they lie.
        identities: All files that a record names.
        numbers: Which of them to open.
        write: Whether to open them for writing.

    Raises:
        OutputError: A file is a link, or has a second name elsewhere that would change along with it.
        WrongBaseError: A file is not the one that the record names.
        OSError: A file cannot be opened.
    """

    def __init__(
        self, folder: Path, identities: Sequence[ShardIdentity], numbers: Iterable[int], *, write: bool = True
    ) -> None:
        self._descriptors: dict[int, int] = {}
        mode = os.O_RDWR if write else os.O_RDONLY
        with ExitStack() as opened:
            opened.callback(self.close)
            for number in numbers:
                path = folder / identities[number].file
                _check_own(path)
                self._descriptors[number] = os.open(path, mode | os.O_NOFOLLOW)
                _check_same(path, self._descriptors[number], identities[number])
            opened.pop_all()

    def held(self, place: Place, indices: Bits | range) -> Bits:
        """Return the bits at the indices, which lie in one window."""
        span = self._read(place, indices)
        return span if isinstance(indices, range) else span[indices - indices[0]]

    def store(self, place: Place, indices: Bits | range, bits: Bits) -> None:
        """Write bits at the indices, and what lies between them as it is, in one write."""
        span = bits
        if not isinstance(indices, range):
            span = self._read(place, indices)
            span[indices - indices[0]] = bits
        start = place.start + int(indices[0]) * place.width
        write_fully(self._descriptors[place.shard], np.ascontiguousarray(span).data.cast("B"), start)

    def carry(self, pieces: Iterable[Piece], bits: Callable[[Piece], Bits]) -> None:
        """Write the chosen bits of pieces, and make them survive a crash."""
        for piece in pieces:
            self.store(piece.place, piece.indices, bits(piece))
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, place: Place, indices: Bits | range) -> Bits:
        first, last = int(indices[0]), int(indices[-1])
        span = np.empty(last - first + 1, f"<i{place.width}")
        read_fully(self._descriptors[place.shard], span.data.cast("B"), place.start + first * place.width)
        return span


def identify(shards: Mapping[Path, Header]) -> list[ShardIdentity]:
    """Return what a record says of the files of a checkpoint."""
    found = []
    for path, header in shards.items():
        with open(path, "rb") as file:
            found.append(
                ShardIdentity(
                    path.name, os.fstat(file.fileno()).st_size, _header_digest(file.fileno(), header.data_start)
                )
            )
    return found


def _header_digest(descriptor: int, size: int | None = None) -> str:
    if size is None:
        size = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    size = min(size, os.fstat(descriptor).st_size)
    buffer = bytearray(size)
    read_fully(descriptor, memoryview(buffer), 0)
    return hashlib.sha256(buffer).hexdigest()


def _check_own(path: Path) -> None:
    status = os.lstat(path)
    link = stat.S_ISLNK(status.st_mode)
    if link or status.st_nlink > 1:
        raise OutputError(
            str(path),
            expected="a file of this folder alone, to be changed in place",
            found=f"a link to {os.readlink(path)}" if link else f"a file with {status.st_nlink} names (hard links)",
            fix="Write a new folder instead, or put a copy of the file there.",
        )


def _check_same(path: Path, descriptor: int, identity: ShardIdentity) -> None:
    size = os.fstat(descriptor).st_size
    if size != identity.size or _header_digest(descriptor) != identity.header:
        raise WrongBaseError(
            str(path),
            expected=f"the file of {identity.size} bytes that the record of an in-place write names",
            found=f"another one, of {size} bytes",
            fix="`rlforget verify FOLDER --repair` sets the record aside; the weights stay as they are.",
        )
