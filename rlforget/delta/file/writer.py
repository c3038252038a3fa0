"""Writing a delta file: frames are encoded on threads and written as they come; the table and the header go last.

Where ranks split the work, each encodes the frames of its own stretch of the line into a passing file, and the first
one appends them to its own. What they write is what one process would, byte for byte.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from rlforget.delta.file.container import RESERVED, checksum, header
from rlforget.delta.file.frames import Bits, Encoding
from rlforget.delta.file.line import WHOLE_LINE, joins
from rlforget.delta.file.run import Run, unsigned
from rlforget.delta.file.table import (
    MOST_FILE,
    MOST_FILES,
    Entry,
    FileEntry,
    Frame,
    Table,
    TableError,
    WholeEntry,
    check_files,
)
from rlforget.delta.file.table_bytes import MOST_FRAMES, pack_table
from rlforget.delta.file.written import ZERO, Sum, Written, joined
from rlforget.delta.scan import PIECE, Piece, added
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.delta.whole import FileDelta
from rlforget.errors import DeltaFileError
from rlforget.weights import Layout, TensorMeta
from rlforget.weights.atomic import new_file, passing_file
from rlforget.weights.raw_io import read_bytes
from rlforget.weights.split import from_parts, meet, part, parts, takes
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.fingerprint import foreach_fingerprint

_HELD = 1 << 20  # bytes of a file that waits in memory for a header of just its size
_SMALL = 4 * PIECE  # coordinates of a model whose file is so small that a share of a percent is worth more than time


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a tensor that travels whole.

    Attributes:
        meta: Its dtype and shape.
        bits: Returns the bits of coordinates [start, stop): 1-D integers of the dtype's width, on the CPU.
    """

    meta: TensorMeta
    bits: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Side:
        """Return the side that a tensor is."""
        flat = as_bits(tensor).cpu()
        return cls(TensorMeta(tensor.dtype, tuple(tensor.shape)), lambda start, stop: flat[start:stop])


@contextmanager
def new_delta_file(
    path: str | PathLike[str],
    layout: Layout,
    *,
    renamed: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    files: Iterable[FileDelta] = (),
    self_contained: bool = False,
    force: bool = False,
    share: range = WHOLE_LINE,
) -> Iterator[DeltaWriter]:
    """Yield a writer; the file takes its place at `path`, whole, when the block ends without an exception.

    Args:
        path: The file, by custom `NAME.delta.safetensors`.
        layout: The tensors that keep shape and dtype, in the order in which their pieces will come, and all aliases.
        renamed: {name before: name after}, for tensors that are not called the same.
        metadata: Strings that travel with the delta.
        files: The files that are no weights and changed.
        self_contained: Let the bits from before travel too.
        force: Replace a file that is there.
        share: The places on the line that this rank writes; see `line.share`.

    Raises:
        OutputError: `path` exists and `force` is not given, or it cannot be written.
        DeltaFileError: What was written does not make a delta file: a file is too large to be carried, for one.
    """
    carried = list(files)
    _check_carried(str(path), carried)
    with _target(Path(path), force=force) as file, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        writer = DeltaWriter(file, pool, str(path), layout, self_contained, share)
        try:
            yield writer
            writer.finish(carried, dict(renamed or {}), dict(metadata or {}))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _target(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Yield the file to write; of ranks that split the work all but the first one's go when that has read them."""
    if part():
        with passing_file(path) as file:
            yield file
            meet()
        return
    with new_file(path, force=force) as file:
        yield file
    meet()


class DeltaWriter:
    """Takes what changed, in order: the pieces of all tensors, then tensors that travel whole.

    Made by `new_delta_file`. Memory is bounded by a few frames.
    """

    def __init__(
        self, file: BinaryIO, pool: ThreadPoolExecutor, path: str, layout: Layout, self_contained: bool, share: range
    ) -> None:
        self._file, self._pool, self._path, self._self_contained = file, pool, path, self_contained
        self._layout = layout
        self._thorough = sum(layout.meta(name).numel for name in layout.names()) <= _SMALL
        self._share = share
        self._pieces_due = iter(self._stretches())
        self._due: _Due | None = None
        self._tensors = {name: Sum() for name in layout.names()}
        self._whole: dict[str, WholeEntry] = {}
        self._frames: list[Frame] = []
        self._waiting: deque[tuple[int, int, int, Future[tuple[Encoding, bytes]]]] = deque()
        self._most_waiting = 2 * torch.get_num_threads()
        self._run = Run()
        self._place = sum(layout.meta(name).numel for name in layout.names())  # on the line, of what comes after pieces
        self._length = 0  # bytes of frames written
        # Frames for whose header nothing is reserved yet. The files of other ranks have none.
        self._held: list[bytes] | None = None if part() else []
        self._next_due()

    def add(self, piece: Piece) -> None:
        """Add the changes within a range of a tensor: its ranges in order, the tensors in that of the layout.

        Raises:
            ValueError: The piece is not the one that is due.
        """
        due = self._due
        if due is None or (piece.name, piece.start) != (due.name, due.start) or not piece.start < piece.stop:
            raise ValueError(f"expected the piece {due}; found {piece.name!r}, [{piece.start}, {piece.stop})")
        meta = self._layout.meta(due.name)
        if piece.stop > due.stop or piece.stop - piece.start > PIECE or piece.dtype != meta.dtype:
            raise ValueError(f"expected a piece within {meta}; found {piece.dtype}, to {piece.stop}")
        self._tensors[due.name].add(piece)
        self._into_run(due.place + piece.start, piece.dtype, piece.stop - piece.start, piece=piece)
        self._due = dataclasses.replace(due, start=piece.stop)
        if piece.stop == due.stop:
            self._next_due()

    def whole(self, name: str, before: Side | None, after: Side | None) -> None:
        """Add a tensor that is on one side alone, resized or retyped. Its sides are read in ranges."""
        if self._due is not None:
            raise ValueError(f"expected all pieces before {name!r}")
        old, new = (None if side is None else side.meta for side in (before, after))
        lanes_before = None if before is None else self._add_side(before, travels=self._self_contained)
        lanes_after = None if after is None else self._add_side(after, travels=True)
        self._whole[name] = WholeEntry(name, old, new, lanes_before, lanes_after)

    def finish(self, carried: list[FileDelta], renamed: dict[str, str], metadata: dict[str, str]) -> None:
        """Write what is left, the files, the table and the header."""
        if self._due is not None:
            raise ValueError(f"expected the piece {self._due}; found the end")
        for file in carried:
            self._add_file(file)
        self._end_run()
        while self._waiting:
            self._write_frame()
        if parts() > 1:
            self._join()
        if part():
            return
        tensors = {
            name: Entry(name, self._layout.meta(name), found.changed, found.before, found.after)
            for name, found in self._tensors.items()
        }
        aliases = dict(self._layout.aliases)
        files = {file.name: FileEntry.of(file) for file in carried}
        table = Table(tensors, self._whole, files, aliases, renamed, metadata, self._self_contained, self._frames)
        try:
            table.check(self._length)
            data = pack_table(table)
        except TableError as error:
            fix = "Mend what is to be saved."
            raise DeltaFileError(self._path, expected="a sound delta", found=str(error), fix=fix) from error
        self._write_table(data)

    def _join(self) -> None:
        """Let the first rank have what all of them wrote."""
        if part():
            self._file.flush()
            os.fsync(self._file.fileno())  # where the first rank is another machine, it reads what is on the disk
        sums = {name: found for name, found in self._tensors.items() if found != Sum()}
        written = from_parts(Written(self._file.name, self._frames, sums, self._whole))
        if part():
            return
        for one in written[1:]:
            for name, found in one.tensors.items():
                self._tensors[name].take(found)
            for name, entry in one.whole.items():
                self._whole[name] = joined(self._whole[name], entry)
            with open(one.file, "rb") as file:
                for frame in one.frames:
                    data = read_bytes(file.fileno(), frame.length, frame.offset)
                    self._append(dataclasses.replace(frame, offset=self._length), data)

    def _write_table(self, data: bytes) -> None:
        if self._held is not None:
            self._file.write(b"".join([header(self._length, data), *self._held, data]))
            return
        self._file.write(data)
        self._file.seek(0)
        self._file.write(header(self._length, data, RESERVED))

    def _stretches(self) -> Iterator[_Due]:
        """Yield what this rank writes of each tensor that keeps its shape."""
        place = 0
        for name in self._layout.names():
            numel = self._layout.meta(name).numel
            start, stop = max(self._share.start - place, 0), min(self._share.stop - place, numel)
            if start < stop:
                yield _Due(name, start, stop, place)
            place += numel

    def _next_due(self) -> None:
        self._due = next(self._pieces_due, None)

    def _add_side(self, side: Side, *, travels: bool) -> Fingerprint:
        lanes = ZERO
        for number, start in enumerate(range(0, side.meta.numel, PIECE)):
            stop = min(start + PIECE, side.meta.numel)
            place = self._next_place(stop - start) if travels else None
            if not (takes(number) if place is None else place in self._share):
                continue
            bits = side.bits(start, stop)
            first, second = foreach_fingerprint([bits], [start])[0].tolist()
            lanes = added(lanes, (first, second))
            if place is not None:
                self._into_run(place, side.meta.dtype, stop - start, bits=unsigned(bits))
        return lanes

    def _add_file(self, file: FileDelta) -> None:
        for content in (file.before, file.after):
            bits = np.frombuffer(content or b"", np.uint8)
            for start in range(0, bits.size, PIECE):
                some = bits[start : start + PIECE]
                place = self._next_place(some.size)
                if place in self._share:
                    self._into_run(place, torch.uint8, some.size, bits=some)

    def _next_place(self, size: int) -> int:
        """Return where on the line the next thing lies that takes so many places."""
        place, self._place = self._place, self._place + size
        return place

    def _into_run(
        self, place: int, dtype: torch.dtype, size: int, *, piece: Piece | None = None, bits: Bits | None = None
    ) -> None:
        """Let a stretch of the line share a frame with those right before it, if it may."""
        form = (dtype.itemsize, dtype.is_floating_point, piece is not None)
        if self._run.size and not joins(form, size, self._run.form, self._run.size):
            self._end_run()
        run = self._run
        if not run.size:
            run.start, run.form = place, form
        if piece is not None:
            run.pieces.append((run.size, piece))
        if bits is not None:
            run.bits.append(bits)
        run.size += size

    def _end_run(self) -> None:
        run, self._run = self._run, Run()
        changed = sum(piece.indices.numel() for _, piece in run.pieces)
        if not run.size or (run.pieces and not changed):
            return
        encoded = self._pool.submit(run.encoded, self._self_contained, self._thorough)
        self._waiting.append((run.start, run.size, changed, encoded))
        while len(self._waiting) > self._most_waiting:
            self._write_frame()

    def _write_frame(self) -> None:
        start, size, changed, future = self._waiting.popleft()
        encoding, data = future.result()
        number = checksum(data)
        signed = number - 2**64 if number >= 2**63 else number
        self._append(Frame(start, size, changed, encoding, len(data), signed, self._length), data)

    def _append(self, frame: Frame, data: bytes) -> None:
        if len(self._frames) + len(self._waiting) >= MOST_FRAMES:
            raise ValueError(f"expected at most {MOST_FRAMES} frames")
        self._frames.append(frame)
        self._length += len(data)
        if self._held is None:
            self._file.write(data)
            return
        self._held.append(data)
        if self._length > _HELD:
            self._file.seek(RESERVED)
            self._file.write(b"".join(self._held))
            self._held = None


def _check_carried(path: str, files: list[FileDelta]) -> None:
    """Refuse files that are not to be carried before anything else is done: a large diff takes minutes."""
    try:
        check_files(FileEntry.of(file) for file in files)
    except TableError as error:
        raise DeltaFileError(
            path,
            expected=f"other files of at most {MOST_FILE >> 20} MiB, {MOST_FILES >> 20} MiB for both sides of all",
            found=str(error),
            fix="Keep such a file out of the checkpoint's folder.",
        ) from error


@dataclasses.dataclass(frozen=True)
class _Due:
    """The piece that comes next: of a tensor whose first coordinate is at `place` on the line, from `start` on."""

    name: str
    start: int
    stop: int
    place: int
