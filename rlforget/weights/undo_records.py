"""The records of finished in-place writes: what each of them was, and dropping them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rlforget.weights import records
from rlforget.weights.atomic import cannot_write
from rlforget.weights.journal import Journal
from rlforget.weights.locks import locked


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


def undo_log(path: str | PathLike[str]) -> list[UndoRecord]:
    """Return the in-place writes of a checkpoint that can be undone, the last first.

    Raises:
        JournalError: A record is damaged.
    """
    path = Path(path)
    found = [UndoRecord.of(Journal(record)) for record in records.finished(records.home(path))]
    return [record for record in found if path.is_dir() or path.name in record.files]


def forget(path: str | PathLike[str], *, dry_run: bool = False) -> int:
    """Drop what `undo` would need: the weights stay as they are, and the room that the records take is free.

    Args:
        path: A checkpoint folder, of which those that were set aside go too; or a `.safetensors` file, where the
            records of its own writes go.
        dry_run: Only count.

    Returns:
        The bytes that they took.

    Raises:
        JournalError: A record beside a file is damaged.
        OutputError: One cannot be removed.
        BusyError: Another process is writing the checkpoint.
    """
    path = Path(path)
    folder = records.home(path)
    with locked(folder), cannot_write(folder, "Make the folder writable; the weights are as they were."):
        found = [*records.finished(folder), *records.unfit(folder)]
        if not path.is_dir():
            found = [record.path for record in undo_log(path) if record.files == (path.name,)]
        size = sum(record.stat().st_size for record in found)
        # The first one first: what is left after a crash can still be undone.
        for record in [] if dry_run else sorted(found):
            records.drop(record)
        return size
