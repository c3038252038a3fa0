"""The table of a delta file: what it is about, where on the line of coordinates each thing lies, and its frames.

All that travels lies on one line, one after another: the coordinates of the tensors that kept shape and dtype, then
the bits of those that did not, then the bytes of files. A frame covers a run of the line. See docs/format.md.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from rlforget.delta.file.frames import KINDS, WHOLE, Encoding
from rlforget.delta.scan import PIECE
from rlforget.delta.sides import fault_in_names
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.delta.whole import FileDelta
from rlforget.weights import TensorMeta
from rlforget.weights.checkpoint_files import is_companion

MOST_LINE = 1 << 62
"""No line is longer."""

MOST_FILE = 64 << 20
"""Bytes of a carried file on either side, at most."""

MOST_FILES = 256 << 20
"""Bytes of all carried files on both sides, at most: they are held in memory, whatever the file's own size."""


class TableError(ValueError):
    """What is wrong with a table."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that kept its shape and dtype.

    Attributes:
        name: Its canonical name; where it was renamed, that before.
        meta: Its dtype and shape.
        changed: How many coordinates changed.
        fingerprint_before: Of the whole tensor before.
        fingerprint_after: Of the whole tensor after.
    """

    name: str
    meta: TensorMeta
    changed: int
    fingerprint_before: Fingerprint
    fingerprint_after: Fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.meta.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.meta.shape


@dataclass(frozen=True, slots=True)
class WholeEntry:
    """A tensor on one side alone, resized or retyped.

    Attributes:
        name: Its canonical name; where it was renamed, that before.
        before: Its dtype and shape before; None: there was none.
        after: Its dtype and shape after; None: there is none any more.
        fingerprint_before: Of its bits before, where it was there.
        fingerprint_after: Of its bits after, where it is there.
    """

    name: str
    before: TensorMeta | None
    after: TensorMeta | None
    fingerprint_before: Fingerprint | None
    fingerprint_after: Fingerprint | None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A carried file that is no weights.

    Attributes:
        name: Its name, without a folder.
        before: Its size in bytes before; None: there was none.
        after: Its size in bytes after; None: there is none any more.
    """

    name: str
    before: int | None
    after: int | None

    @classmethod
    def of(cls, file: FileDelta) -> FileEntry:
        """Return the entry of a file."""
        before, after = (None if content is None else len(content) for content in (file.before, file.after))
        return cls(file.name, before, after)


Key = tuple[str, str, str]
"""What lies on the line: ("tensor", name, ""), ("whole", name, side) or ("file", name, side)."""


Form = tuple[int, bool, bool]
"""What the things of one frame share: width in bytes, whether they spell floats, whether they kept their shape."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the line that belongs to one thing.

    Attributes:
        key: What it is.
        dtype: Of its elements; uint8 for files.
        start: Its first place on the line.
        stop: The place after its last one.
    """

    key: Key
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def form(self) -> Form:
        """What the spans of one frame share."""
        return self.dtype.itemsize, self.dtype.is_floating_point, self.key[0] == "tensor"


@dataclass(frozen=True, slots=True)
class Frame:
    """A row of the table of frames.

    Attributes:
        start: Where its run begins on the line.
        coordinates: How long its run is.
        changed: How many coordinates of it changed; 0 for things that travel whole.
        encoding: How it is encoded.
        length: Its bytes in the file.
        checksum: xxh3_64 of those bytes, as a signed number.
        offset: Where those bytes begin among those of all frames.
    """

    start: int
    coordinates: int
    changed: int
    encoding: Encoding
    length: int
    checksum: int
    offset: int


@dataclass
class Table:
    """All that a delta file says but for the frames themselves.

    Attributes:
        tensors: By name, in the order in which they lie on the line.
        whole: Likewise.
        files: Likewise.
        aliases: Further names of tied tensors, with the names they stand for.
        renamed: {name before: name after}.
        metadata: The user's strings.
        self_contained: Whether the bits from before travel.
        frames: In the order in which they lie on the line.
        spans: What lies on the line, without what is empty.
    """

    tensors: Mapping[str, Entry]
    whole: Mapping[str, WholeEntry]
    files: Mapping[str, FileEntry]
    aliases: dict[str, str]
    renamed: dict[str, str]
    metadata: dict[str, str]
    self_contained: bool
    frames: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spans: list[Span] = list(self._laid_out())
        self.span_of: dict[Key, Span] = {span.key: span for span in self.spans}
        self._starts = [frame.start for frame in self.frames]

    def _laid_out(self) -> Iterator[Span]:
        place = 0
        for key, dtype, size in self._things():
            if size:
                yield Span(key, dtype, place, place + size)
                place += size
        require(place <= MOST_LINE, "more coordinates than there can be")

    def _things(self) -> Iterator[tuple[Key, torch.dtype, int]]:
        for name, entry in self.tensors.items():
            yield ("tensor", name, ""), entry.dtype, entry.meta.numel
        for name, whole in self.whole.items():
            for side, meta in (("before", whole.before), ("after", whole.after)):
                if meta is not None and (side == "after" or self.self_contained):
                    yield ("whole", name, side), meta.dtype, meta.numel
        for name, file in self.files.items():
            for side, size in (("before", file.before), ("after", file.after)):
                yield ("file", name, side), torch.uint8, size or 0

    def frames_between(self, start: int, stop: int) -> list[Frame]:
        """Return the frames whose runs meet places [start, stop) of the line, in order."""
        first = bisect.bisect_right(self._starts, start)
        if first and self.frames[first - 1].start + self.frames[first - 1].coordinates > start:
            first -= 1
        return self.frames[first : bisect.bisect_left(self._starts, stop)]

    def encoding_of(self, name: str) -> str:
        """Return how the changes of a tensor are kept; see `DeltaFile.encoding`."""
        span = self.span_of.get(("tensor", name, ""))
        if span is None or not self.tensors[name].changed:
            return "none"
        kinds = {frame.encoding.kind for frame in self.frames_between(span.start, span.stop)}
        return "+".join(KINDS[kind] for kind in sorted(kinds)) or "none"

    def name_after(self, name: str) -> str:
        """Return what a tensor that was called `name` before is called after."""
        return self.renamed.get(name, name)

    def check(self, data: int) -> None:
        """Check that everything fits together.

        Args:
            data: How many bytes the frames have in the file.

        Raises:
            TableError: It does not.
        """
        self._check_names()
        end = length = changed = 0
        whole_from = max((span.stop for span in self.spans if span.form[2]), default=0)
        spans = iter(self.spans)
        span = next(spans, None)
        for frame in self.frames:
            run = frame.start + frame.coordinates
            require(end <= frame.start and 0 < frame.coordinates <= PIECE, "frames out of order, or of no such length")
            form = None
            while span is not None and span.start < run:
                if span.stop > frame.start:
                    require(form in (None, span.form), "a frame over elements of two kinds")
                    form = span.form
                if span.stop > run:
                    break
                span = next(spans, None)
            require(form is not None and run <= self.spans[-1].stop, "a frame outside of all tensors")
            kept = form is not None and form[2]
            require(
                0 < frame.changed <= frame.coordinates if kept else not frame.changed, "a frame that changes nothing"
            )
            require(kept or frame.start == max(end, whole_from), "bits that are missing")
            require(kept or frame.encoding.kind == WHOLE, "steps where bits should be")
            require(0 < frame.length <= data - length, "frames longer than the file")
            end, length, changed = run, length + frame.length, changed + frame.changed
        require(length == data, "bytes that belong to no frame")
        require(max(end, whole_from) == (self.spans[-1].stop if self.spans else 0), "bits that are missing at the end")
        require(changed == sum(entry.changed for entry in self.tensors.values()), "other counts of changes")

    def _check_names(self) -> None:
        names = self.tensors.keys() | self.whole.keys()
        require(len(names) == len(self.tensors) + len(self.whole), "a tensor described twice")
        require(names.isdisjoint(self.aliases), "an alias that is the name of a tensor")
        require(names.issuperset(self.aliases.values()), "an alias of no tensor")
        metas = {name: (whole.before, whole.after) for name, whole in self.whole.items()}
        fault = fault_in_names(self.tensors, metas, self.renamed)
        require(fault is None, str(fault))
        for entry in self.tensors.values():
            require(0 <= entry.changed <= entry.meta.numel, f"{entry.changed} changes in {entry.name!r}")
        for name, whole in self.whole.items():
            require(whole.before is not None or whole.after is not None, f"{name!r} on neither side")
        check_files(self.files.values())


def check_files(files: Iterable[FileEntry]) -> None:
    """Check the names and sizes of carried files.

    Raises:
        TableError: No delta file carries them.
    """
    total = 0
    for file in files:
        require(safe_file_name(file.name), f"a file called {file.name!r}")
        sizes = [size for size in (file.before, file.after) if size is not None]
        require(max(sizes, default=0) <= MOST_FILE, f"{max(sizes, default=0)} bytes of the file {file.name!r}")
        total += sum(sizes)
    require(total <= MOST_FILES, f"{total} bytes of files that are no weights")


def safe_file_name(name: str) -> bool:
    """Whether a carried file may have this name: a plain name of a file that holds no weights and is not hidden."""
    plain = 0 < len(name.encode("utf-8", "surrogatepass")) <= 255 and not set(name) & {"/", "\\", "\0"}
    return plain and name not in (".", "..") and is_companion(name)


def require(condition: bool, fault: str) -> None:
    """Raise a `TableError` unless the condition holds."""
    if not condition:
        raise TableError(fault)
