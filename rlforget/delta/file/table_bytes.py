"""The table of a delta file as bytes: a JSON text, then columns of numbers, compressed together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rlforget.delta.file.compression import CompressionError, compress, decompress
from rlforget.delta.file.frames import Encoding, FrameError
from rlforget.delta.file.table import MOST_LINE, Entry, FileEntry, Frame, Table, TableError, WholeEntry, require
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.weights import DTYPES, TensorMeta

COLUMNS = 6
MOST_FRAMES = 1 << 20

_DTYPE_OF_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
_MOST_TEXT = 12 << 20
_SHORT_TEXT, _PER_BYTE = 1 << 20, 16  # a text shrinks no further: fingerprints, 16 bytes a tensor, do not at all
_SMALLEST_FRAME = 10  # bytes: a zstd frame with its header, and a block
_NUMBERS_PER_CHARACTER = 4  # bytes: at most five numbers for an entry of ten characters or more
_SHORT = 1 << 18  # bytes of text for which the best compression takes no time to speak of
_FIELDS = ("tensors", "whole", "files", "aliases", "renamed", "metadata", "self_contained")


def pack_table(table: Table) -> bytes:
    """Return the table as it stands in the file."""
    text = json.dumps(
        {
            "tensors": [[e.name, *_described(e.meta)] for e in table.tensors.values()],
            "whole": [[e.name, _side(e.before), _side(e.after)] for e in table.whole.values()],
            "files": [[e.name, e.before, e.after] for e in table.files.values()],
            "aliases": table.aliases,
            "renamed": table.renamed,
            "metadata": table.metadata,
            "self_contained": table.self_contained,
        },
        separators=(",", ":"),
    ).encode("ascii")
    rows = [(f.start, f.coordinates, f.changed, f.encoding.number, f.length, f.checksum) for f in table.frames]
    frames = np.array(rows, np.int64).reshape(-1, COLUMNS).T
    changed = [entry.changed for entry in table.tensors.values()]
    head = np.array([len(text), len(rows)], np.dtype("<i8")).tobytes() + text
    streams = [np.frombuffer(head, np.uint8), *(_numbers(part) for part in (frames, changed, list(_lanes(table))))]
    data = compress(streams, effort=19 if len(text) < _SHORT else 3)
    require(len(text) <= most_text(len(data)), f"names and metadata of {len(text)} bytes")
    return data


def _numbers(values: Any) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.array(values, np.dtype("<i8"))).reshape(-1).view(np.uint8)


def _described(meta: TensorMeta) -> tuple[str, list[int]]:
    return str(meta.dtype).removeprefix("torch."), list(meta.shape)


def _side(meta: TensorMeta | None) -> tuple[str, list[int]] | None:
    return None if meta is None else _described(meta)


def _lanes(table: Table) -> Iterator[Fingerprint]:
    for entry in table.tensors.values():
        yield entry.fingerprint_before
        if entry.changed:
            yield entry.fingerprint_after
    for whole in table.whole.values():
        yield from (lanes for lanes in (whole.fingerprint_before, whole.fingerprint_after) if lanes is not None)


def most_text(packed: int) -> int:
    """Return how many bytes the text of a table may have that takes `packed` bytes in the file."""
    return min(_MOST_TEXT, _SHORT_TEXT + _PER_BYTE * packed)


def unpack_table(data: bytes, frames: int) -> Table:
    """Read the table back; `Table.check` is still to be called.

    Args:
        data: Its bytes in the file.
        frames: How many bytes the frames have in the file. Both bound what is believed, and so memory and time.

    Raises:
        TableError: It is damaged or forged.
    """
    text_room, most_frames = most_text(len(data)), min(MOST_FRAMES, frames // _SMALLEST_FRAME)
    try:
        most = 16 + text_room * (1 + _NUMBERS_PER_CHARACTER) + most_frames * COLUMNS * 8
        content = decompress(data, most)
        require(content.size >= 16, "a table that ends early")
        size, count = content[:16].view("<i8").tolist()
        require(0 <= size <= text_room and 0 <= count <= most_frames, "a table of no such size")
        rest = content[16 + size :]
        require(rest.size >= count * COLUMNS * 8 and rest.size % 8 == 0, "a table that ends early")
        numbers = np.frombuffer(rest.tobytes(), "<i8")
        text = json.loads(content[16 : 16 + size].tobytes())
        return _table(text, numbers[: count * COLUMNS].reshape(COLUMNS, count), numbers[count * COLUMNS :].tolist())
    except (CompressionError, FrameError, TypeError, ValueError, KeyError, RecursionError) as error:
        plain = isinstance(error, TableError | CompressionError | FrameError)
        raise TableError(str(error) if plain else f"{type(error).__name__}: {error}") from error


def _table(text: Any, columns: npt.NDArray[np.int64], numbers: list[int]) -> Table:
    require(isinstance(text, dict) and all(key in text for key in _FIELDS), "a table without its fields")
    require(type(text["self_contained"]) is bool, "self_contained that is neither true nor false")
    rows = _rows(text["tensors"], 3)
    changed, rest = numbers[: len(rows)], numbers[len(rows) :]
    require(len(changed) == len(rows), "fewer counts of changes than tensors")
    lanes = iter(zip(rest[::2], rest[1::2], strict=False))
    tensors = [_entry(row, count, lanes) for row, count in zip(rows, changed, strict=True)]
    whole = [_whole(row, lanes) for row in _rows(text["whole"], 3)]
    files = [_file(row) for row in _rows(text["files"], 3)]
    used = sum(1 + bool(e.changed) for e in tensors) + sum(
        (e.before is not None) + (e.after is not None) for e in whole
    )
    require(len(rest) == 2 * used, "fingerprints of other tensors")
    return Table(
        _by_name(tensors),
        _by_name(whole),
        _by_name(files),
        aliases=_strings(text["aliases"]),
        renamed=_strings(text["renamed"]),
        metadata=_strings(text["metadata"]),
        self_contained=text["self_contained"],
        frames=_frames(columns),
    )


def _frames(columns: npt.NDArray[np.int64]) -> list[Frame]:
    starts, coordinates, changed, encodings, lengths, checksums = columns.tolist()
    offsets = [0, *itertools.accumulate(lengths)]
    known = {number: Encoding.of(number) for number in set(encodings)}
    return [
        Frame(start, size, count, known[number], length, checksum, offset)
        for start, size, count, number, length, checksum, offset in zip(
            starts, coordinates, changed, encodings, lengths, checksums, offsets, strict=False
        )
    ]


def _entry(row: list[Any], changed: int, lanes: Iterator[Fingerprint]) -> Entry:
    name, dtype, shape = row
    require(isinstance(name, str), "a name that is no string")
    before = _next(lanes)
    return Entry(name, _meta(dtype, shape), changed, before, _next(lanes) if changed else before)


def _whole(row: list[Any], lanes: Iterator[Fingerprint]) -> WholeEntry:
    name, *sides = row
    require(isinstance(name, str), "a name that is no string")
    before, after = (None if side is None else _meta(*_pair(side)) for side in sides)
    return WholeEntry(
        name, before, after, None if before is None else _next(lanes), None if after is None else _next(lanes)
    )


def _file(row: list[Any]) -> FileEntry:
    name, before, after = row
    require(isinstance(name, str), "a name that is no string")
    for size in (before, after):
        require(size is None or (_is_count(size) and size < MOST_LINE), f"size {size!r} of {name!r}")
    return FileEntry(name, before, after)


def _meta(dtype: Any, shape: Any) -> TensorMeta:
    require(isinstance(dtype, str) and dtype in _DTYPE_OF_NAME, f"dtype {dtype!r}")
    sizes = isinstance(shape, list) and all(_is_count(size) and size < MOST_LINE for size in shape)
    require(sizes and len(shape) <= 64, f"shape {shape!r:.99}")
    meta = TensorMeta(_DTYPE_OF_NAME[dtype], tuple(shape))
    require(meta.numel < MOST_LINE, f"shape {shape!r:.99}")
    return meta


def _next(lanes: Iterator[Fingerprint]) -> Fingerprint:
    found = next(lanes, None)
    if found is None:
        raise TableError("fewer fingerprints than tensors")
    return found


def _rows(value: Any, width: int) -> list[list[Any]]:
    sound = isinstance(value, list) and all(isinstance(row, list) and len(row) == width for row in value)
    require(sound, f"a list that is not one of {width} fields a row")
    rows: list[list[Any]] = value
    return rows


def _pair(value: Any) -> list[Any]:
    require(isinstance(value, list) and len(value) == 2, "a side that is not a dtype and a shape")
    pair: list[Any] = value
    return pair


def _by_name(entries: list[Any]) -> dict[str, Any]:
    found = {entry.name: entry for entry in entries}
    require(len(found) == len(entries), "a name described twice")
    return found


def _strings(value: Any) -> dict[str, str]:
    sound = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    require(sound, "aliases, names or metadata that are no strings")
    result: dict[str, str] = value
    return result


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
