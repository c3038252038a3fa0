"""Writing a checkpoint in place, as a transaction: a record first, then the weights, then an undo record.

The record of what changes, with the bits before, is on the disk before the first byte of the weights is written. While
it is called `NNNNNN.unfinished.safetensors` in the checkpoint's `.rlforget` folder, the weights may be half written,
and whoever opens the checkpoint next puts the bits from before back. One rename ends the write: as
`NNNNNN.undo.safetensors` the same record takes it back when it is asked to. To undo is to rename it back to unfinished
and to do just what follows a crash, so that it can be cut short at any point too.

The checkpoint's folder is locked meanwhile. A checkpoint of one file has its records in the folder that it lies in.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from rlforget.errors import JournalError, OutputError, RlforgetError, UnfinishedWriteError, WrongBaseError
from rlforget.weights import records
from rlforget.weights.atomic import new_file, sync_folder
from rlforget.weights.journal import Journal, Piece
from rlforget.weights.recording import Recorder
from rlforget.weights.shards import Shards, identify

if TYPE_CHECKING:
    from rlforget.weights.checkpoint import CheckpointWeights

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Change(Protocol):
    """Some of what an in-place write changes in one tensor."""

    @property
    def name(self) -> str:
        """The tensor; an alias stands for its storage."""

    @property
    def indices(self) -> Tensor:
        """Flat indices, int32 or int64 [k], ascending, after those of any earlier change of this storage."""

    @property
    def before_bits(self) -> Tensor:
        """Their bits now, integers [k] of the dtype's width."""

    @property
    def after_bits(self) -> Tensor:
        """Their bits afterwards, integers [k] of the dtype's width."""


@dataclass(frozen=True)
class UndoRecord:
    """An in-place write that can be undone.

    Attributes:
        number: Its number in this folder.
        path: The record's file.
        note: What it was, for people.
        created: When, in UTC, as ISO 8601.
        changed: How many coordinates got other bits.
        files: Names of the files that it changed.
    """

    number: int
    path: Path
    note: str
    created: str
    changed: int
    files: tuple[str, ...]

    @classmethod
    def of(cls, journal: Journal) -> UndoRecord:
        """Describe a record that was opened."""
        files = tuple(sorted(journal.shards[number].file for number in journal.touched))
        number = records.number_of(journal.path)
        return cls(number, journal.path, journal.note, journal.created, journal.changed, files)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for programs."""
        return {**asdict(self), "path": str(self.path), "files": list(self.files)}


def write_in_place(checkpoint: CheckpointWeights, changes: Iterable[Change], *, note: str = "") -> UndoRecord | None:
    """Change a checkpoint on disk in place, wholly or not at all, in memory that does not follow its size.

    Every expected bit is checked before the first one is written. A fault or an interrupt puts the old bits back; after
    a crash, the next that opens the checkpoint does. Whoever has it open meanwhile may see half of the change.

    Args:
        checkpoint: The checkpoint, whose files must be its own: not links, and without second names.
        changes: What to change, read once. A storage of several names comes under one of them.
        note: What this is, for `undo_log`.

    Returns:
        The record that `undo` takes back; None where there was nothing to change.

    Raises:
        WrongBaseError: The checkpoint does not hold the bits before.
        LayoutError: The bits are not as wide as the tensor's, or a storage's changes overlap.
        CoordinateError: An index is out of range.
        UnknownNameError: There is no such tensor.
        OutputError: It cannot be written (read-only, disk full, links). The weights are as they were.
        BusyError: Another process is writing it.
        UnfinishedWriteError: The disk failed, and fails still, so that the old bits could not be put back either.
    """
    folder = records.home(checkpoint.path)
    with records.locked(folder):
        _take_back_unfinished(folder)
        number = records.next_number(folder)
        identities = identify(checkpoint.shards)
        with _unwritable(folder), Shards(folder, identities, range(len(identities))) as shards:

            def write() -> UndoRecord | None:
                (folder / records.STATE).mkdir(exist_ok=True)
                sync_folder(folder)
                with new_file(records.unfinished_path(folder, number)) as file:
                    recorder = Recorder(file, checkpoint, identities, shards, note)
                    for change in changes:
                        recorder.add(change.name, change.indices, change.before_bits, change.after_bits)
                    recorder.finish()
                if not recorder.changed:
                    take_back()
                    return None
                return _put_forward(folder, number, shards)

            def take_back() -> None:
                _take_back(folder, number, shards)
                records.remove_if_empty(folder)

            return _or_else(folder, write, take_back)


def check_writable(checkpoint: CheckpointWeights) -> None:
    """Check that `write_in_place` would begin.

    Raises:
        OutputError: The files are read-only, or links.
        BusyError: Another process is writing the checkpoint.
    """
    folder = records.home(checkpoint.path)
    identities = identify(checkpoint.shards)
    with records.locked(folder), _unwritable(folder), Shards(folder, identities, range(len(identities))):
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def recover(path: str | PathLike[str]) -> list[str]:
    """Put right what an in-place write that was cut short left of the checkpoint at `path`: the old bits are put back.

    Every opening of a checkpoint begins with this; where nothing is left over it costs one look at a folder. What was
    done is logged as a warning, which without any logging set up is a line on stderr.

    Args:
        path: A checkpoint folder or `.safetensors` file, or any other path.

    Returns:
        What was done, one line a write.

    Raises:
        BusyError: Another process, still alive, is writing it.
        UnfinishedWriteError: It cannot be put right here: the folder is read-only, or the disk fails.
        WrongBaseError: The weights were changed by other means since.
        JournalError: The record is damaged.
    """
    folder = records.home(Path(path))
    if not records.unfinished(folder):
        return []
    with records.locked(folder):
        return _take_back_unfinished(folder)


def undo(path: str | PathLike[str], *, dry_run: bool = False) -> UndoRecord:
    """Take the last in-place write of a checkpoint back, bit for bit. This can be repeated until `undo_log` is empty.

    It is itself a transaction: cut short, it is finished by the next that opens the checkpoint.

    Args:
        path: A checkpoint folder; or a `.safetensors` file, whose own last write is taken back.
        dry_run: Only check that it could be.

    Returns:
        The record of what was taken back, which is no more.

    Raises:
        JournalError: There is nothing to undo, or the record is damaged.
        WrongBaseError: The checkpoint does not hold the bits that the write left. Nothing is changed.
        OutputError: It cannot be written, or the write was one of several files at once and `path` is one of them.
        BusyError: Another process is writing it.
        UnfinishedWriteError: The disk failed on the way, and fails still.
    """
    path = Path(path)
    folder = records.home(path)
    with records.locked(folder):
        _take_back_unfinished(folder)
        journal = _last(path, folder)
        done = UndoRecord.of(journal)
        with _unwritable(folder), Shards(folder, journal.shards, journal.touched) as shards:
            check_left(journal, shards)
            if dry_run:
                return done
            _or_else(
                folder,
                lambda: _take_back(folder, done.number, shards),
                lambda: _put_forward(folder, done.number, shards),
            )
            return done


def undo_log(path: str | PathLike[str]) -> list[UndoRecord]:
    """Return the in-place writes of a checkpoint that can be undone, the last first.

    Raises:
        JournalError: A record is damaged.
    """
    path = Path(path)
    found = [UndoRecord.of(Journal(record)) for record in records.finished(records.home(path))]
    return [record for record in found if path.is_dir() or path.name in record.files]


def not_in_place(what: str, found: str) -> OutputError:
    """Build the error for a change that takes new files: another shape, dtype or name, or files that are no weights.

    Args:
        what: The checkpoint.
        found: What there is to change, e.g. "3 resized tensors".
    """
    fix = "Write a new folder, with out= or -o."
    return OutputError(what, expected="new bits for tensors as they are, in place", found=found, fix=fix)


def fits(piece: Piece, held: Any) -> bool:
    """Whether bits may be what a write that was cut short left: each byte is the one before or the one after.

    Bytes and not elements, because a disk that loses power may keep a part of an element that crosses a sector's end.
    """
    now, before, after = (bits.view(np.uint8) for bits in (held, piece.before, piece.after))
    return bool(((now == before) | (now == after)).all())


def check_left(journal: Journal, shards: Shards | None) -> None:
    """Read a record, and hold that the weights are what its write left.

    Args:
        journal: The record.
        shards: The files; None only reads the record.

    Raises:
        JournalError: The record is damaged.
        WrongBaseError: They hold other bits.
    """
    for piece in journal.pieces():
        wrong = np.flatnonzero(shards.held(piece.place, piece.indices) != piece.after) if shards else np.empty(0)
        if wrong.size:
            raise WrongBaseError(
                f"{journal.shards[piece.place.shard].file}, tensor {piece.place.name!r}",
                expected=f"the bits that {_named(journal)} left",
                found=f"other bits, first at index {int(piece.indices[int(wrong[0])])}",
                fix="The weights were changed since by other means: undo those changes first.",
            )


def _take_back_unfinished(folder: Path) -> list[str]:
    """Put back the bits before every write that was cut short; the folder is locked."""
    done = []
    for record in records.unfinished(folder):
        journal = Journal(record)
        try:
            with Shards(folder, journal.shards, journal.touched) as shards:
                if not all(fits(piece, shards.held(piece.place, piece.indices)) for piece in journal.pieces()):
                    raise _changed_since(folder, journal)
                _take_back(folder, records.number_of(record), shards)
        except OSError as error:
            raise _left_unfinished(folder, error) from error
        done.append(f"{folder}: {_named(journal)} had not finished; the bits from before it are back")
        _log.warning("rlforget: %s", done[-1])
    return done


def _take_back(folder: Path, number: int, shards: Shards) -> None:
    """Put the bits before a write back and drop its record, if it has one."""
    record = records.as_unfinished(folder, number)
    if record is not None:
        shards.carry(Journal(record).pieces(), lambda piece: piece.before)
        records.drop(record)


def _put_forward(folder: Path, number: int, shards: Shards) -> UndoRecord | None:
    """Put the bits after a write in place, so that it can be undone; if it has a record."""
    record = records.as_unfinished(folder, number)
    if record is None:
        return None
    journal = Journal(record)
    shards.carry(journal.pieces(), lambda piece: piece.after)
    return replace(UndoRecord.of(journal), path=records.as_finished(record))


def _or_else(folder: Path, work: Callable[[], T], otherwise: Callable[[], object]) -> T:
    """Return what `work` returns; where it raises, `otherwise` brings the weights back to what they were."""
    try:
        return work()
    except BaseException as fault:
        try:
            otherwise()
        except (OSError, RlforgetError) as error:
            raise _left_unfinished(folder, error) from fault
        raise


def _last(path: Path, folder: Path) -> Journal:
    """Return the record of the last write of a checkpoint."""
    for record in records.finished(folder):
        journal = Journal(record)
        files = UndoRecord.of(journal).files
        if path.is_dir() or files == (path.name,):
            return journal
        if path.name in files:
            raise OutputError(
                str(path),
                expected="a file that was last written alone",
                found=f"{_named(journal)} of {len(files)} files at once",
                fix=f"Undo that of {folder}.",
            )
    raise JournalError(
        str(path),
        expected="the record of an in-place write to undo",
        found="none",
        fix="Only what was written with --in-place can be undone.",
    )


def _named(journal: Journal) -> str:
    return f"an in-place write of {journal.created}" + (f" ({journal.note})" if journal.note else "")


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "Free some space or make it writable; the weights are as they were."
        expected = "a checkpoint that can be written in place"
        raise OutputError(str(folder), expected=expected, found=str(error), fix=fix) from error


def _left_unfinished(folder: Path, error: Exception) -> UnfinishedWriteError:
    return UnfinishedWriteError(
        str(folder),
        expected="a whole checkpoint",
        found=f"an in-place write that did not finish and cannot be taken back now: {error}",
        fix="Open it, or a copy of the whole folder, where it can be written: that puts the bits from before back.",
    )


def _changed_since(folder: Path, journal: Journal) -> WrongBaseError:
    return WrongBaseError(
        str(folder),
        expected="what was left by a write that did not finish",
        found=f"other bits than those before and after {_named(journal)}: the weights were changed since",
        fix="`rlforget verify FOLDER --repair` sets its record aside; the weights stay as they are.",
    )
