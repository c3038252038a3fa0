"""The record of an in-place write: what it changes, as bits before and after, enough to take it back after a crash.

A record is a plain safetensors file of two tensors, written and read piece by piece in bounded memory:

- `data`, U8 [bytes]: for each piece its flat indices (unless it is a run), its bits before, and its bits after.
- `pieces`, I64 [n, 6]: for each piece the number of its tensor, its first flat index, its count, the bytes an index
  takes (4 or 8; 0 for a run of consecutive indices), where it lies in `data`, and the CRC-32 of its bytes there.

The header's metadata says: `format`, `version`, `note`, `created` (UTC), `changed` (coordinates), `table` (CRC-32 of
`pieces`), and as JSON `shards` [file name, size, SHA-256 of the header] and `tensors` [name, dtype, numel, number of
its shard, first byte there]. File names are relative to the checkpoint's folder, so that a record moves along with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rlforget.errors import JournalError, NotACheckpointError
from rlforget.weights.raw_io import read_fully
from rlforget.weights.safetensors_file import DTYPE_OF_CODE, read_header

Bits = npt.NDArray[Any]
"""1-D integers as wide as the weights' elements."""

_FORMAT, _VERSION = "rlforget.journal", "1"
_COLUMNS = 6
WINDOW = 1 << 22
"""Coordinates from the first to the last of a piece, at most."""
_ALIGNMENT = 8
_LARGEST = 2**62  # stands for any number whose digits are not known yet


@dataclass(frozen=True)
class ShardIdentity:
    """What a record says of a file, to know it again: its name, size in bytes, and SHA-256 of its header in hex."""

    file: str
    size: int
    header: str


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: its dtype's code, coordinates, the number of its shard, and its first byte there."""

    name: str
    dtype: str
    numel: int
    shard: int
    start: int

    @property
    def width(self) -> int:
        """Bytes an element."""
        return DTYPE_OF_CODE[self.dtype].itemsize


@dataclass(frozen=True)
class Piece:
    """The changes in one window of one tensor.

    Attributes:
        place: The tensor.
        indices: Flat indices, ascending, int32 or int64; a range where all of the window is listed.
        before: Their bits before.
        after: Their bits after.
    """

    place: Place
    indices: Bits | range
    before: Bits
    after: Bits


class JournalWriter:
    """Writes a record into an empty file, piece by piece.

    Args:
        file: Open for writing, at its start.
        shards: The checkpoint's files.
        places: Its tensors.
        note: What the write is, for people.
    """

    def __init__(self, file: BinaryIO, shards: Sequence[ShardIdentity], places: Sequence[Place], note: str) -> None:
        self._file = file
        self._metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "note": note,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "shards": json.dumps([list(asdict(shard).values()) for shard in shards]),
            "tensors": json.dumps([list(asdict(place).values()) for place in places]),
        }
        self._rows: list[tuple[int, ...]] = []
        self._size = self.changed = 0
        # The header comes first but is known last: room for its longest form is left, and the rest filled with blanks.
        self._reserved = _rounded_up(len(self._header(_LARGEST, _LARGEST, _LARGEST, _LARGEST)))
        file.write(bytes(8 + self._reserved))

    def add(self, tensor: int, indices: Bits | range, before: Bits, after: Bits, changed: int) -> None:
        """Add a piece of the tensor of that number, with how many of its coordinates change."""
        run = isinstance(indices, range)
        parts = [before, after] if isinstance(indices, range) else [indices, before, after]
        check = 0
        for part in parts:
            data = np.ascontiguousarray(part).data.cast("B")
            check = zlib.crc32(data, check)
            self._file.write(data)
        index_width = 0 if run else parts[0].itemsize
        self._rows.append((tensor, int(indices[0]), len(indices), index_width, self._size, check))
        self._size += sum(part.nbytes for part in parts)
        self.changed += changed

    def finish(self) -> None:
        """Write the table and the header."""
        size = _rounded_up(self._size)
        table = np.array(self._rows, dtype="<i8").reshape(-1, _COLUMNS).tobytes()
        self._file.write(bytes(size - self._size) + table)
        header = self._header(size, len(self._rows), self.changed, zlib.crc32(table))
        self._file.seek(0)
        self._file.write(self._reserved.to_bytes(8, "little") + header.ljust(self._reserved))

    def _header(self, size: int, rows: int, changed: int, check: int) -> bytes:
        end = size + rows * _COLUMNS * 8
        header = {
            "__metadata__": {**self._metadata, "changed": str(changed), "table": str(check)},
            "data": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
            "pieces": {"dtype": "I64", "shape": [rows, _COLUMNS], "data_offsets": [size, end]},
        }
        return json.dumps(header).encode()


class Journal:
    """A record that was written, opened and checked; its pieces are read when they are asked for.

    Raises:
        JournalError: It is damaged, of another format, or leads outside its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = read_header(path)
            metadata = header.metadata
            known = (metadata["format"], metadata["version"]) == (_FORMAT, _VERSION)
            self.note, self.created, self.changed = metadata["note"], metadata["created"], int(metadata["changed"])
            self.shards = [ShardIdentity(*row) for row in json.loads(metadata["shards"])]
            self.places = [Place(*row) for row in json.loads(metadata["tensors"])]
            self._data, table = header.entries["data"], header.entries["pieces"]
            with open(path, "rb") as file:
                file.seek(table.start)
                stored = file.read(table.stop - table.start)
            self._rows = np.frombuffer(stored, dtype="<i8").reshape(-1, _COLUMNS)
            whole = known and zlib.crc32(stored) == int(metadata["table"])
            whole = whole and self._shards_hold() and self._places_hold() and self._rows_hold()
        except (NotACheckpointError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if not whole:
            raise self._damaged("other contents")

    @cached_property
    def touched(self) -> frozenset[int]:
        """The numbers of the shards that it changes."""
        return frozenset(self.places[tensor].shard for tensor in np.unique(self._rows[:, 0]).tolist())

    def pieces(self) -> Iterator[Piece]:
        """Read the pieces, one after another.

        Raises:
            JournalError: One of them is damaged.
        """
        with open(self.path, "rb", buffering=0) as file:
            for row in self._rows.tolist():
                yield self._piece(file.fileno(), row)

    def _piece(self, descriptor: int, row: list[int]) -> Piece:
        tensor, first, count, index, offset, check = row
        place = self.places[tensor]
        buffer = np.empty(count * (index + 2 * place.width), np.uint8)
        read_fully(descriptor, buffer.data, self._data.start + offset)
        if zlib.crc32(buffer.data) != check:
            raise self._damaged(f"other bytes for {place.name!r} than were written")
        indices: Bits | range = range(first, first + count)
        if index:
            indices = buffer[: count * index].view(f"<i{index}")
        before, after = (part.copy().view(f"<i{place.width}") for part in np.split(buffer[count * index :], 2))
        if index and not (indices[0] == first and (np.diff(indices) > 0).all() and indices[-1] < place.numel):
            raise self._damaged(f"indices outside {place.name!r}, or out of order")
        return Piece(place, indices, before, after)

    def _shards_hold(self) -> bool:
        names = [shard.file for shard in self.shards]
        plain = all(PurePath(name).name == name and name not in ("", ".", "..") for name in names)
        return plain and len(set(names)) == len(names)

    def _places_hold(self) -> bool:
        return all(
            0 <= place.shard < len(self.shards)
            and place.start > 0
            and place.numel >= 0
            and place.start + place.numel * place.width <= self.shards[place.shard].size
            for place in self.places
        )

    def _rows_hold(self) -> bool:
        size = self._data.stop - self._data.start
        return all(
            0 <= tensor < len(self.places)
            and first >= 0
            and 0 < count <= min(WINDOW, self.places[tensor].numel - first)
            and index in (0, 4, 8)
            and 0 <= offset <= size - count * (index + 2 * self.places[tensor].width)
            for tensor, first, count, index, offset, _ in self._rows.tolist()
        )

    def _damaged(self, found: str) -> JournalError:
        return JournalError(
            str(self.path),
            expected="the whole record of an in-place write",
            found=found,
            fix="`rlforget verify FOLDER --repair` sets it aside; the weights stay as they are.",
        )


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
