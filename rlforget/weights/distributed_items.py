"""One item of torch.distributed.checkpoint: a tensor that `torch.save` wrote somewhere within a file."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlforget.errors import NotACheckpointError
from rlforget.weights.box import Box
from rlforget.weights.chunks import Values
from rlforget.weights.known_pickle import Record, read_pickle
from rlforget.weights.layout import TensorMeta
from rlforget.weights.raw_io import read_bytes

DTYPE_NAMES = {
    ("torch", str(one).removeprefix("torch.")): one for one in vars(torch).values() if type(one) is torch.dtype
}
"""What dtypes are called in a pickle."""

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ITEM_NAMES: Mapping[tuple[str, str], Any] = {
    **DTYPE_NAMES,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    ("torch.storage", "UntypedStorage"): None,
    ("torch._utils", "_rebuild_tensor_v2"): Record,
    ("torch._utils", "_rebuild_tensor_v3"): Record,
    ("torch._utils", "_rebuild_parameter"): Record,
    ("collections", "OrderedDict"): Record,
}
"""The names in a plain tensor that `torch.save` wrote."""


@dataclass(frozen=True)
class Item:
    """Where a chunk lies: a file of its own, which `torch.save` wrote, within a file.

    Attributes:
        box: The block of the tensor that it holds.
        file: The file.
        start: Position of its first byte.
        length: Its bytes.
    """

    box: Box
    file: Path
    start: int
    length: int

    def find(self, meta: TensorMeta) -> Values:
        """Return where its values are.

        Raises:
            NotACheckpointError: The item is damaged, or no plain tensor of these sizes and this dtype.
        """
        what = f"{self.file}, item at {self.start}"
        try:
            with open(self.file, "rb") as file:
                return _find(self, meta, what, file.fileno())
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, KeyError, IndexError, TypeError) as fault:
            raise damaged(what, "a whole item that torch.save wrote", str(fault)) from fault


class _Section(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length, self._place = descriptor, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if place < 0:
            raise ValueError("a place before the first byte")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._length - self._place, 0)]
        count = os.preadv(self._descriptor, [view], self._start + self._place)
        self._place += count
        return count


def _find(item: Item, meta: TensorMeta, what: str, descriptor: int) -> Values:
    with zipfile.ZipFile(io.BufferedReader(_Section(descriptor, item.start, item.length))) as archive:
        records = {one.filename.partition("/")[2]: one for one in archive.infolist()}
        if any(one.compress_type != zipfile.ZIP_STORED or one.file_size > item.length for one in records.values()):
            raise ValueError("compressed records")
        order = archive.read(records["byteorder"]).decode() if "byteorder" in records else sys.byteorder
        tensor = read_pickle(io.BytesIO(archive.read(records["data.pkl"])), what, _ITEM_NAMES)
    while tensor.arguments and isinstance(tensor.arguments[0], Record):
        tensor = tensor.arguments[0]  # of a parameter
    (_, dtype, key, *_), first, sizes, strides, *more = tensor.arguments
    (first,), sizes, strides = natural((first,)), natural(sizes), natural(strides)
    found = TensorMeta(more[2] if dtype is None else dtype, sizes)
    if order != sys.byteorder or found != TensorMeta(meta.dtype, item.box.sizes):
        expected = f"{TensorMeta(meta.dtype, item.box.sizes)} in {sys.byteorder}-endian bytes, as the metadata say"
        raise damaged(what, expected, f"{found}, {order}-endian")
    values = records[f"data/{key}"]
    header = read_bytes(descriptor, 30, item.start + values.header_offset)
    skipped = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = values.header_offset + len(header) + skipped
    last = first + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if header[:4] != b"PK\x03\x04" or start + values.file_size > item.length:
        raise ValueError("a record without its header")
    if (last + 1) * meta.dtype.itemsize > values.file_size:
        raise ValueError("values beyond the end of their record")
    row_major = tuple(torch.empty(sizes, device="meta").stride())
    straight = all(size == 1 or a == b for size, a, b in zip(sizes, strides, row_major, strict=True))
    return Values(item.file, item.start + start + first * meta.dtype.itemsize, None if straight else strides)


def natural(numbers: Any) -> tuple[int, ...]:
    """Return whole numbers from a pickle as a tuple.

    Raises:
        ValueError: Some are none, or negative.
    """
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers!r} where natural numbers should be")
    return tuple(numbers)


def damaged(what: str, expected: str, found: str) -> NotACheckpointError:
    """Build the error for a folder of which something is damaged or missing."""
    return NotACheckpointError(what, expected=expected, found=found, fix="Fetch or save the checkpoint again.")
