"""Delta files that are damaged with knowledge of their structure, with lengths and checksums that fit again."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable
from typing import Any

import torch
import zstandard

from tests.delta.file.forging import Parts, compressed, put_together
from tests.kernels.strategies import DTYPES

_NUMBERS = (
    0,
    1,
    2,
    14,
    15,
    16,
    254,
    255,
    256,
    2**15,
    2**16,
    2**22 - 1,
    2**22,
    2**22 + 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
)
_ENCODING_BYTES = 5

NOTHING_THERE = (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError)
"""What is raised where an earlier change left nothing to change."""

Mutation = Callable[[Parts, random.Random], None]


def _number(value: int, rng: random.Random) -> int:
    choice = rng.random()
    if choice < 0.4:
        return value + rng.choice((-2, -1, 1, 2))
    if choice < 0.6:
        return rng.choice(_NUMBERS) * rng.choice((1, 1, 1, -1))
    if choice < 0.8:
        return value ^ (1 << rng.randrange(63))
    return rng.getrandbits(rng.randrange(1, 63))


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, drop, double or insert bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.7 else rng.randrange(min(len(out), 16) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.choice((0, 1, 15, 127, 128, 240, 254, 255))
        elif kind == 2:
            del out[place : place + rng.choice((1, 2, 8, len(out)))]
        elif kind == 3:
            out[place:place] = rng.choice((b"\0", b"\xff", b"\xff" * 16, bytes(rng.randrange(64))))
        elif kind == 4:
            run = rng.randrange(1, 40)
            out[place : place + run] = rng.choice((b"\xff", b"\0", b"\xf0")) * len(out[place : place + run])
        else:
            out[place : place + 8] = rng.randbytes(len(out[place : place + 8]))
    return bytes(out)


def _header(parts: Parts, rng: random.Random) -> None:
    key = rng.choice(("frames", "table", "__metadata__", "more"))
    offset = rng.choice(_NUMBERS)
    array: Any = {"dtype": rng.choice(("U8", "I8", "F64")), "shape": [offset], "data_offsets": [0, offset]}
    parts.header[key] = rng.choice((array, 3, None, [], "x", {}, {"dtype": "U8"}))


def _strings(parts: Parts, rng: random.Random) -> None:
    key = rng.choice(("format", "version", "checksum", "more"))
    parts.strings[key] = rng.choice(("", "2", "1", "rlforget.delta", None, 3, ["x"]))


def _row(column: str) -> Mutation:
    def mutate(parts: Parts, rng: random.Random) -> None:
        if parts.rows:
            row = rng.choice(parts.rows)
            row[column] = _number(row[column], rng)
            parts.forced.add(column)

    return mutate


def _encoding(parts: Parts, rng: random.Random) -> None:
    if parts.rows:
        row, place = rng.choice(parts.rows), 8 * rng.randrange(_ENCODING_BYTES)
        row["encoding"] = row["encoding"] & ~(255 << place) | rng.choice((0, 1, 2, 3, 4, 8, 16, 56, 57, 255)) << place


def _rows(parts: Parts, rng: random.Random) -> None:
    if not parts.rows:
        return
    at = rng.randrange(len(parts.rows))
    kind = rng.randrange(4)
    if kind == 0:
        del parts.rows[at], parts.payloads[at]
    elif kind == 1:
        parts.rows.insert(at, dict(parts.rows[at]))
        parts.payloads.insert(at, parts.payloads[at])
    elif kind == 2:
        rng.shuffle(parts.rows)
    else:
        rng.shuffle(parts.payloads)


def _payload(parts: Parts, rng: random.Random) -> None:
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        parts.payloads[at] = _bytes(parts.payloads[at], rng)


def _frame(parts: Parts, rng: random.Random) -> None:
    """The compressed bytes themselves."""
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        parts.raw[at] = _bytes(compressed(parts.payloads[at]), rng)


def _bomb(parts: Parts, rng: random.Random) -> None:
    """A frame that unpacks to more, or to more than it says, or does not say."""
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        size = rng.choice((1 << 16, 1 << 24, 1 << 30)) if rng.random() < 0.2 else 1 << rng.randrange(12, 18)
        parts.raw[at] = _compressed_run(size, rng.choice((0, 255)), rng.random() < 0.7)


@functools.cache
def _compressed_run(size: int, value: int, tells_size: bool) -> bytes:
    """Compress a run of one byte, without ever holding it."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size if tells_size else -1)
    chunk = bytes([value]) * min(size, 1 << 16)
    return b"".join([*(compressor.compress(chunk) for _ in range(size // len(chunk))), compressor.flush()])


def _shape(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["tensors"], *([["", *side] for row in parts.text["whole"] for side in row[1:] if side])]
    if rows:
        shape = rng.choice(rows)[2]
        if shape and rng.random() < 0.7:
            at = rng.randrange(len(shape))
            shape[at] = rng.choice((_number(shape[at], rng), 1.5, None, "3", True, [2]))
        else:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice(_NUMBERS))


def _dtype(parts: Parts, rng: random.Random) -> None:
    dtype: Any = rng.choice([*(str(dtype)[6:] for dtype in DTYPES), "float4", "complex64", 3, None, []])
    side = rng.choice([row for row in parts.text["whole"] for row in row[1:] if row] or [None])
    if side is not None and rng.random() < 0.5:
        side[0] = dtype
    elif parts.text["tensors"]:
        rng.choice(parts.text["tensors"])[1] = dtype


def _name(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["tensors"], *parts.text["whole"], *parts.text["files"]]
    if rows:
        names = [row[0] for row in rows]
        odd = [
            "",
            "..",
            "../../etc/passwd",
            "a/b",
            "a\\b",
            "a\0b",
            "/etc/passwd",
            "model.safetensors",
            "\ud800",
            3,
            None,
        ]
        rng.choice(rows)[0] = rng.choice([*names, *odd])


def _whole_sides(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["whole"], *parts.text["files"]]
    if rows:
        row = rng.choice(rows)
        row[rng.choice((1, 2))] = rng.choice(
            (None, 0, 1, -1, 100, 2**62, 2**70, ["bool", [4]], ["float64", [2**40]], [], 1.0)
        )


def _mappings(parts: Parts, rng: random.Random) -> None:
    names = [row[0] for row in parts.text["tensors"]] + ["x", "tied"]
    key = rng.choice(("aliases", "renamed", "metadata"))
    value: Any = rng.choice([{rng.choice(names): rng.choice(names)}, {"x": 3}, {"x": None}, [], None, "x", {}])
    parts.text[key] = value


def _fields(parts: Parts, rng: random.Random) -> None:
    key = rng.choice([*parts.text, "more"])
    parts.text[key] = rng.choice((None, 3, [], {}, "x", True, False, [[]], [[1, 2, 3]], [["x", "bool", [2]]]))


def _text(parts: Parts, rng: random.Random) -> None:
    parts.text_bytes = _bytes(json.dumps(parts.text).encode(), rng)


def _counts(parts: Parts, rng: random.Random) -> None:
    length = len(json.dumps(parts.text))
    parts.counts = (
        (_number(length, rng), len(parts.rows)) if rng.random() < 0.5 else (length, _number(len(parts.rows), rng))
    )


def _list(values: list[int], rng: random.Random) -> None:
    if values and rng.random() < 0.8:
        at = rng.randrange(len(values))
        values[at] = _number(values[at], rng)
    elif values and rng.random() < 0.5:
        values.pop()
    else:
        values.append(rng.choice(_NUMBERS))


def _changed(parts: Parts, rng: random.Random) -> None:
    _list(parts.changed, rng)


def _lanes(parts: Parts, rng: random.Random) -> None:
    _list(parts.lanes, rng)


def _table(parts: Parts, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        parts.compressed_table = rng.randbytes(rng.randrange(200))
    elif kind == 1:
        parts.compressed_table = _compressed_run(1 << rng.choice((10, 20, 26, 30)), 0, rng.random() < 0.7)
    else:
        parts.table_bytes = rng.randbytes(rng.randrange(400))


def _inflated(parts: Parts, rng: random.Random) -> None:
    """A tensor that travels whole, or a carried file, larger by sound frames of zeros: by 4 MiB and by 1 GB."""
    tensors, whole, files = (parts.text[key] for key in ("tensors", "whole", "files"))
    rows = [row for row in (whole, files) if row]
    if not rows:
        return
    last = rng.choice(rows)[-1]  # so that its side after ends right where the new frames begin
    frames = rng.choice((1, 1, 1, 2, 16, 17, 64, 65, 250))
    end = sum(math.prod(shape) for _, _, shape in tensors)
    sides = [(row, place) for row in whole for place in (1, 2) if place == 2 or parts.text["self_contained"]]
    end += sum(math.prod(row[place][1]) for row, place in sides if row[place])
    end += sum((row[1] or 0) + (row[2] or 0) for row in files if last in files)
    if type(end) is not int:
        return  # a change before it left sizes that are no numbers
    width = 1
    if last in files:
        last[2] = (last[2] or 0) + (frames << 22)
    else:
        width = torch.empty(0, dtype=getattr(torch, last[2][0])).itemsize
        last[2][1] = [math.prod(last[2][1]) + (frames << 22)]
    at = sum(row["start"] < end for row in parts.rows)
    for row in parts.rows[at:]:
        row["start"] += frames << 22
    new = {"coordinates": 1 << 22, "changed": 0, "encoding": 3, "length": 0, "checksum": 0}
    parts.rows[at:at] = [{"start": end + (n << 22), **new} for n in range(frames)]
    parts.payloads[at:at] = [b""] * frames
    zeros = _compressed_run(width << 22, 0, True)
    parts.raw = {place + frames * (place >= at): frame for place, frame in parts.raw.items()}
    parts.raw |= dict.fromkeys(range(at, at + frames), zeros)


MUTATIONS: dict[str, Mutation] = {
    "header": _header,
    "strings": _strings,
    "frame start": _row("start"),
    "frame coordinates": _row("coordinates"),
    "frame changed": _row("changed"),
    "frame encoding": _row("encoding"),
    "frame length": _row("length"),
    "frame checksum": _row("checksum"),
    "frame coding": _encoding,
    "frame order": _rows,
    "payload": _payload,
    "payload again": _payload,
    "compressed frame": _frame,
    "bomb": _bomb,
    "shape": _shape,
    "dtype": _dtype,
    "name": _name,
    "sides": _whole_sides,
    "mappings": _mappings,
    "fields": _fields,
    "text": _text,
    "counts": _counts,
    "changed": _changed,
    "fingerprints": _lanes,
    "table": _table,
    "inflated": _inflated,
}


def mutated(content: bytes, sound: Parts, rng: random.Random) -> tuple[bytes, list[str]]:
    """Return a changed file and what was changed; one in ten in its plain bytes, which checksums should find.

    Args:
        content: A sound file.
        sound: The same, taken apart.
        rng: Decides.
    """
    if rng.random() < 0.1:
        return _bytes(content, rng), ["plain bytes"]
    parts = copy.deepcopy(sound)
    names = rng.choices(list(MUTATIONS), k=rng.choice((1, 1, 1, 2, 3)))
    for name in names:
        try:
            MUTATIONS[name](parts, rng)
        except (
            AttributeError,
            TypeError,
            KeyError,
            IndexError,
            ValueError,
            OverflowError,
        ):  # a change before it left nothing to change here
            names = [*names, "nothing more"]
    return put_together(parts), names
