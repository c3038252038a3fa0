"""Delta files taken apart, by docs/format.md and without the code under test, and put together again to order."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import xxhash
import zstandard

COLUMNS = ("start", "coordinates", "changed", "encoding", "length", "checksum")


@dataclass
class Parts:
    """All that a file says; `payloads` are what its frames unpack to, where they do.

    What `put_together` fills in (lengths, checksums, offsets) can be forced: `header` entries, `rows` keys that are in
    `forced`, and `raw` frames, which stand in place of the compressed payload of that number.
    """

    strings: dict[str, Any]
    text: Any
    rows: list[dict[str, int]]
    changed: list[int]
    lanes: list[int]
    payloads: list[bytes]
    raw: dict[int, bytes] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    header: dict[str, Any] = field(default_factory=dict)
    counts: tuple[int, int] | None = None
    text_bytes: bytes | None = None
    table_bytes: bytes | None = None
    compressed_table: bytes | None = None


def take_apart(content: bytes) -> Parts:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    data = content[8 + size :]
    start, stop = header["table"]["data_offsets"]
    table = zstandard.ZstdDecompressor().decompress(data[start:stop])
    length, count = struct.unpack("<2q", table[:16])
    text = json.loads(table[16 : 16 + length])
    numbers = list(struct.unpack(f"<{(len(table) - 16 - length) // 8}q", table[16 + length :]))
    columns = [numbers[place * count : (place + 1) * count] for place in range(6)]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
    rest = numbers[6 * count :]
    tensors = len(text["tensors"])
    payloads, place = [], 0
    for row in rows:
        payloads.append(zstandard.ZstdDecompressor().decompress(data[place : place + row["length"]]))
        place += row["length"]
    return Parts(header["__metadata__"], text, rows, rest[:tensors], rest[tensors:], payloads)


def put_together(parts: Parts) -> bytes:
    frames = []
    rows = [dict(row) for row in parts.rows]
    for number, payload in enumerate(parts.payloads):
        frame = parts.raw.get(number)
        frames.append(compressed(payload) if frame is None else frame)
    for row, frame in zip(rows, frames, strict=False):
        if "length" not in parts.forced:
            row["length"] = len(frame)
        if "checksum" not in parts.forced:
            row["checksum"] = struct.unpack("<q", struct.pack("<Q", xxhash.xxh3_64_intdigest(frame)))[0]
    text = parts.text_bytes if parts.text_bytes is not None else json.dumps(parts.text).encode()
    counts = parts.counts or (len(text), len(rows))
    numbers = [row[column] for column in COLUMNS for row in rows] + parts.changed + parts.lanes
    wrapped = [(number + 2**63) % 2**64 - 2**63 for number in (*counts, *numbers)]
    table = struct.pack("<2q", *wrapped[:2]) + text + struct.pack(f"<{len(numbers)}q", *wrapped[2:])
    if parts.table_bytes is not None:
        table = parts.table_bytes
    packed = parts.compressed_table if parts.compressed_table is not None else compressed(table)
    data = b"".join(frames)
    strings = dict(parts.strings)
    if strings.get("checksum") is not None:
        strings["checksum"] = xxhash.xxh3_64_hexdigest(packed)
    header = {
        "__metadata__": strings,
        "frames": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]},
        "table": {"dtype": "U8", "shape": [len(packed)], "data_offsets": [len(data), len(data) + len(packed)]},
    } | parts.header
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data + packed


def compressed(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)
