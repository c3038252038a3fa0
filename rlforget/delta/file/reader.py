"""Reading a delta file: the table is checked when it is opened, a frame when something in it is asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rlforget.delta.file.container import Container, ContainerError, checksum, read_container
from rlforget.delta.file.frames import Decoded, FrameError, decode
from rlforget.delta.file.patch import Part, Patch, part_of
from rlforget.delta.file.table import Entry, FileEntry, Frame, Key, Span, Table, TableError, WholeEntry
from rlforget.delta.file.table_bytes import unpack_table
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.errors import DeltaFileError, UnknownNameError
from rlforget.weights import TensorMeta, Weights
from rlforget.weights.digest import digest
from rlforget.weights.raw_io import read_bytes
from rlforget_kernels.common.bits import bits_dtype

if TYPE_CHECKING:
    from rlforget.delta.delta import Delta

Side = Literal["before", "after"]

KEPT_FRAMES = 4
"""Decoded frames that wait to be asked for again, unless it is said otherwise."""

_KEPT_BYTES = 64 << 20  # which they may take, but for the last


@dataclass
class _Slot:
    """The place of a decoded frame: whoever asks for it first decodes it, and whoever asks meanwhile waits for that."""

    lock: Lock = field(default_factory=Lock)
    frame: Decoded | None = None


class DeltaFile:
    """A delta file, opened. Its header and table are checked; frames are read and checked when they are asked for.

    Safe to use from several threads. What is read is never mapped, and few frames are kept, so memory does not follow
    the file.

    Args:
        path: The file.
        kept_frames: How many decoded frames wait to be asked for again, at most; at least 1.

    Attributes:
        path: The file.
        kept_frames: As given.
        tensors: The tensors that kept their shape and dtype, by name, in order.
        whole: Those that are on one side alone, resized or retyped.
        files: The carried files that are no weights.
        aliases: Further names of tied tensors, with the names they stand for.
        renamed: {name before: name after}, for tensors that are not called the same.
        metadata: The user's strings.
        self_contained: Whether the bits from before are in it.

    Raises:
        DeltaFileError: The file is missing, truncated, damaged, forged, or of another format or version.
    """

    def __init__(self, path: str | PathLike[str], *, kept_frames: int = KEPT_FRAMES) -> None:
        self.path = Path(path)
        self._descriptor = -1
        self._lock = Lock()
        self.kept_frames = kept_frames
        self._kept: OrderedDict[int, _Slot] = OrderedDict()
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is refused, not waited for
            self._container = read_container(self._descriptor)
            self._table = _read_table(self._descriptor, self._container)
        except FileNotFoundError as error:
            fix = "Check the path."
            raise DeltaFileError(str(path), expected="a delta file", found="nothing there", fix=fix) from error
        except (ContainerError, TableError, OSError) as error:
            raise self._fault(str(error)) from error
        table = self._table
        self.tensors: Mapping[str, Entry] = MappingProxyType(table.tensors)
        self.whole: Mapping[str, WholeEntry] = MappingProxyType(table.whole)
        self.files: Mapping[str, FileEntry] = MappingProxyType(table.files)
        self.aliases, self.renamed, self.metadata = table.aliases, table.renamed, table.metadata
        self.self_contained = table.self_contained

    def __del__(self) -> None:
        """Close the file."""
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"DeltaFile({str(self.path)!r}, {len(self.tensors)} tensors, {self.changed} of {self.numel} changed)"

    @property
    def changed(self) -> int:
        """The number of coordinates whose bits differ, in tensors that kept their shape and dtype."""
        return sum(entry.changed for entry in self.tensors.values())

    @property
    def numel(self) -> int:
        """The number of coordinates of those tensors."""
        return sum(entry.meta.numel for entry in self.tensors.values())

    @property
    def fingerprint_before(self) -> str:
        """Digest of all weights before; see `rlforget.weights.digest`."""
        found: dict[str, tuple[TensorMeta, Fingerprint]] = {}
        for name, entry in self.tensors.items():
            found[name] = entry.meta, entry.fingerprint_before
        for name, whole in self.whole.items():
            if whole.before is not None and whole.fingerprint_before is not None:
                found[name] = whole.before, whole.fingerprint_before
        return digest(found)

    @property
    def fingerprint_after(self) -> str:
        """Digest of all weights after."""
        found: dict[str, tuple[TensorMeta, Fingerprint]] = {}
        for name, entry in self.tensors.items():
            found[self.name_after(name)] = entry.meta, entry.fingerprint_after
        for name, whole in self.whole.items():
            if whole.after is not None and whole.fingerprint_after is not None:
                found[self.name_after(name)] = whole.after, whole.fingerprint_after
        return digest(found)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self._container.end

    def name_after(self, name: str) -> str:
        """Return what a tensor that was called `name` before is called after."""
        return self._table.name_after(name)

    def encoding(self, name: str) -> str:
        """Return how a tensor's changes are kept: `sparse`, `dense`, `whole`, several joined by `+`, or `none`."""
        return self._table.encoding_of(self._entry(name).name)

    def patch(self, name: str, start: int = 0, stop: int | None = None) -> Patch:
        """Return the changes within a range of a tensor that kept its shape and dtype; aliases are accepted.

        Args:
            name: The tensor.
            start: Row-major flat index of the first coordinate.
            stop: Index after the last one; None: to the end.

        Raises:
            UnknownNameError: There is no such tensor.
            DeltaFileError: A frame is damaged or forged.
        """
        entry = self._entry(name)
        numel = entry.meta.numel
        stop = numel if stop is None else stop
        _check_range(entry.name, start, stop, numel)
        parts = self._parts(("tensor", entry.name, ""), start, stop)
        return Patch(str(self.path), entry.name, start, stop, entry.dtype, numel, parts)

    def changed_ranges(self, name: str) -> list[tuple[int, int]]:
        """Return ranges of a tensor, ascending and apart, that hold all of its changes, each within one frame.

        Only they need to be read, however large the tensor is said to be.
        """
        span = self._table.span_of.get(("tensor", self._entry(name).name, ""))
        if span is None:
            return []
        frames = self._table.frames_between(span.start, span.stop)
        return [
            (max(frame.start, span.start) - span.start, min(frame.start + frame.coordinates, span.stop) - span.start)
            for frame in frames
        ]

    def whole_bits(self, name: str, side: Side, start: int = 0, stop: int | None = None) -> Tensor:
        """Return bits of a tensor that travels whole: 1-D integers of the dtype's width, [stop - start].

        Raises:
            UnknownNameError: There is no such tensor, or not on that side.
            DeltaFileError: The bits from before do not travel, or a frame is damaged or forged.
        """
        entry = self.whole.get(name)
        meta = None if entry is None else entry.before if side == "before" else entry.after
        if meta is None:
            raise _unknown(f"tensor {name!r}, {side}", "a tensor that travels whole")
        if side == "before" and not self.self_contained:
            raise self.needs_base(f"the bits of {name!r} before")
        stop = meta.numel if stop is None else stop
        _check_range(name, start, stop, meta.numel)
        bits = torch.empty(stop - start, dtype=bits_dtype(meta.dtype))
        self._fill(bits, ("whole", name, side), start, stop)
        if meta.dtype == torch.bool and not bool(((bits == 0) | (bits == 1)).all()):
            raise self._fault(f"{name!r} with values that are neither true nor false")
        return bits

    def file_bytes(self, name: str, side: Side) -> bytes | None:
        """Return what a carried file held on one side; None where it was not there.

        Raises:
            UnknownNameError: There is no such file.
            DeltaFileError: A frame is damaged or forged.
        """
        entry = self.files.get(name)
        if entry is None:
            raise _unknown(f"file {name!r}", "a carried file")
        size = entry.before if side == "before" else entry.after
        if size is None:
            return None
        content = torch.empty(size, dtype=torch.int8)
        self._fill(content, ("file", name, side), 0, size)
        return content.numpy().tobytes()

    def read(self, base: Weights | None = None, *, max_bytes: int | None = None) -> Delta:
        """Read all of it into memory, and check all of it; see `Delta.load`."""
        from rlforget.delta.file.memory import read

        return read(self, base, max_bytes)

    def needs_base(self, what: str) -> DeltaFileError:
        """Build the error for something that the file does not hold without the weights at one of its ends."""
        return DeltaFileError(
            str(self.path),
            expected=f"{what}",
            found="a file that holds steps from the weights before to those after",
            fix="Give base= the weights at either end, or save the delta with self_contained=True.",
        )

    def _entry(self, name: str) -> Entry:
        entry = self.tensors.get(self.aliases.get(name, name))
        if entry is None:
            raise _unknown(f"tensor {name!r}", f"one of the {len(self.tensors)} tensors that kept their shape")
        return entry

    def _fill(self, bits: Tensor, key: Key, start: int, stop: int) -> None:
        target = bits.numpy().view(f"u{bits.element_size()}")
        for part in self._parts(key, start, stop):
            target[part.start : part.start + part.size] = part.after

    def _parts(self, key: Key, start: int, stop: int) -> list[Part]:
        if start >= stop:
            return []
        span = self._table.span_of[key]
        first, last = span.start + start, span.start + stop
        frames = self._table.frames_between(first, last)
        return [part_of(self._decoded(frame, span), frame.start, first, last) for frame in frames]

    def _decoded(self, frame: Frame, span: Span) -> Decoded:
        with self._lock:
            slot = self._kept.setdefault(frame.start, _Slot())
            self._kept.move_to_end(frame.start)
        with slot.lock:
            if slot.frame is None:
                slot.frame = self._read_frame(frame, span)
        with self._lock:
            while len(self._kept) > 1 and (len(self._kept) > self.kept_frames or self._kept_bytes() > _KEPT_BYTES):
                self._kept.popitem(last=False)
        return slot.frame

    def _kept_bytes(self) -> int:
        return sum(slot.frame.nbytes for slot in self._kept.values() if slot.frame is not None)

    def _read_frame(self, frame: Frame, span: Span) -> Decoded:
        where = f"frame at {frame.start}"
        try:
            data = read_bytes(self._descriptor, frame.length, self._container.frames + frame.offset)
        except OSError as error:
            raise self._fault(f"{where}: {error}") from error
        if checksum(data) != frame.checksum % 2**64:
            raise self._fault(f"{where}: bytes that do not fit their checksum")
        kept = span.key[0] == "tensor"
        try:
            return decode(
                data,
                frame.encoding,
                coordinates=frame.coordinates,
                changed=frame.changed,
                width=span.dtype.itemsize,
                with_before=kept and self.self_contained,
            )
        except FrameError as error:
            raise self._fault(f"{where}: {error}") from error

    def _fault(self, found: str) -> DeltaFileError:
        return DeltaFileError(
            str(self.path),
            expected="a sound rlforget.delta file of version 1",
            found=found,
            fix="Fetch the file again, or make the delta again.",
        )


def _read_table(descriptor: int, container: Container) -> Table:
    data = read_bytes(descriptor, container.end - container.table, container.table)
    if checksum(data) != container.checksum:
        raise TableError("a table that does not fit its checksum")
    frames = container.table - container.frames
    table = unpack_table(data, frames)
    table.check(frames)
    return table


def _check_range(name: str, start: int, stop: int, numel: int) -> None:
    if not 0 <= start <= stop <= numel:
        raise ValueError(f"{name!r}: expected a range within {numel} coordinates; found [{start}, {stop})")


def _unknown(what: str, expected: str) -> UnknownNameError:
    return UnknownNameError(what, expected=expected, found="nothing of that name", fix="List the names first.")
