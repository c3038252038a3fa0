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
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from rlforget.errors import JournalError, OutputError
from rlforget.weights import records
from rlforget.weights.atomic import new_file, sync_folder
from rlforget.weights.journal import Journal
from rlforget.weights.locks import locked
from rlforget.weights.recording import Recorder
from rlforget.weights.recovering import check_left, named, or_else, put_forward, take_back, take_back_unfinished
from rlforget.weights.shards import Shards, identify
from rlforget.weights.undo_records import UndoRecord

if TYPE_CHECKING:
    from rlforget.weights.checkpoint import CheckpointWeights


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
    with locked(folder):
        take_back_unfinished(folder)
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
                    leave()
                    return None
                journal = put_forward(folder, number, shards)
                return None if journal is None else UndoRecord.of(journal)

            def leave() -> None:
                take_back(folder, number, shards)
                records.remove_if_empty(folder)

            return or_else(folder, write, leave)


def check_writable(checkpoint: CheckpointWeights) -> None:
    """Check that `write_in_place` would begin.

    Raises:
        OutputError: The files are read-only, or links.
        BusyError: Another process is writing the checkpoint.
    """
    folder = records.home(checkpoint.path)
    identities = identify(checkpoint.shards)
    with locked(folder), _unwritable(folder), Shards(folder, identities, range(len(identities))):
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


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
    with locked(folder):
        take_back_unfinished(folder)
        journal = _last(path, folder)
        done = UndoRecord.of(journal)
        with _unwritable(folder), Shards(folder, journal.shards, journal.touched) as shards:
            check_left(journal, shards)
            if dry_run:
                return done
            or_else(
                folder,
                lambda: take_back(folder, done.number, shards),
                lambda: put_forward(folder, done.number, shards),
            )
            return done


def not_in_place(what: str, found: str) -> OutputError:
    """Build the error for a change that takes new files: another shape, dtype or name, or files that are no weights.

    Args:
        what: The checkpoint.
        found: What there is to change, e.g. "3 resized tensors".
    """
    fix = "Write a new folder, with out= or -o."
    return OutputError(what, expected="new bits for tensors as they are, in place", found=found, fix=fix)


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
                found=f"{named(journal)} of {len(files)} files at once",
                fix=f"Undo that of {folder}.",
            )
    raise JournalError(
        str(path),
        expected="the record of an in-place write to undo",
        found="none",
        fix="Only what was written with --in-place can be undone.",
    )


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "Free some space or make it writable; the weights are as they were."
        expected = "a checkpoint that can be written in place"
        raise OutputError(str(folder), expected=expected, found=str(error), fix=fix) from error
