"""Taking in-place writes back, or forward, by their records: after a crash, after a fault, and when asked to.

Whatever cuts this short leaves a record that says how to go on, so that it can be cut short at any point too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlforget.errors import RlforgetError, UnfinishedWriteError, WrongBaseError
from rlforget.weights import records
from rlforget.weights.journal import Journal, Piece
from rlforget.weights.locks import locked
from rlforget.weights.ranks import world
from rlforget.weights.shards import Shards

T = TypeVar("T")

_PATIENCE = 60.0  # seconds

_log = logging.getLogger(__name__)


def recover(path: str | PathLike[str]) -> list[str]:
    """Put right what an in-place write that was cut short left of the checkpoint at `path`: the old bits are put back.

    Every opening of a checkpoint begins with this; where nothing is left over it costs one look at a folder,
    and one more for each that links lead to. What was
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
    return [line for folder in records.homes(Path(path)) for line in recover_folder(folder)]


def recover_folder(folder: Path) -> list[str]:
    """Put right what in-place writes that were cut short left in one folder; see `recover`."""
    if not records.unfinished(folder):
        return []
    # Ranks open a checkpoint at the same time: one of them puts it right, and the others wait for it.
    with locked(folder, patience=_PATIENCE if world() > 1 else 0.0):
        return take_back_unfinished(folder)


def take_back_unfinished(folder: Path) -> list[str]:
    """Put back the bits before every write that was cut short; the folder is locked."""
    done = []
    for record in records.unfinished(folder):
        journal = Journal(record)
        try:
            with Shards(folder, journal.shards, journal.touched) as shards:
                if not all(_fits(piece, shards.held(piece.place, piece.indices)) for piece in journal.pieces()):
                    raise _changed_since(folder, journal)
                take_back(folder, records.number_of(record), shards)
        except OSError as error:
            raise _left_unfinished(folder, error) from error
        done.append(f"{folder}: {named(journal)} had not finished; the bits from before it are back")
        _log.warning("rlforget: %s", done[-1])
    return done


def take_back(folder: Path, number: int, shards: Shards) -> None:
    """Put the bits before a write back and drop its record, if it has one."""
    record = records.as_unfinished(folder, number)
    if record is not None:
        shards.carry(Journal(record).pieces(), lambda piece: piece.before)
        records.drop(record)


def put_forward(folder: Path, number: int, shards: Shards) -> Journal | None:
    """Put the bits after a write in place, so that it can be undone. Returns its record, if it has one."""
    record = records.as_unfinished(folder, number)
    if record is None:
        return None
    journal = Journal(record)
    shards.carry(journal.pieces(), lambda piece: piece.after)
    journal.path = records.as_finished(record)
    return journal


def or_else(folder: Path, work: Callable[[], T], otherwise: Callable[[], object]) -> T:
    """Return what `work` returns; where it raises, `otherwise` brings the weights back to what they were."""
    try:
        return work()
    except BaseException as fault:
        try:
            otherwise()
        except (OSError, RlforgetError) as error:
            raise _left_unfinished(folder, error) from fault
        raise


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
                expected=f"the bits that {named(journal)} left",
                found=f"other bits, first at index {int(piece.indices[int(wrong[0])])}",
                fix="The weights were changed since by other means: undo those changes first.",
            )


def named(journal: Journal) -> str:
    """Return when a write was and what, for people."""
    return f"an in-place write of {journal.created}" + (f" ({journal.note})" if journal.note else "")


def _left_unfinished(folder: Path, error: Exception) -> UnfinishedWriteError:
    return UnfinishedWriteError(
        str(folder),
        expected="a whole checkpoint",
        found=f"an in-place write that did not finish and cannot be taken back now: {error}",
        fix="Open it, or a copy of the whole folder, where it can be written: that puts the bits from before back.",
    )


def _fits(piece: Piece, held: Any) -> bool:
    """Whether bits may be what a write that was cut short left: each byte is the one before or the one after.

    Bytes and not elements, because a disk that loses power may keep a part of an element that crosses a sector's end.
    """
    now, before, after = (bits.view(np.uint8) for bits in (held, piece.before, piece.after))
    return bool(((now == before) | (now == after)).all())


def _changed_since(folder: Path, journal: Journal) -> WrongBaseError:
    return WrongBaseError(
        str(folder),
        expected="what was left by a write that did not finish",
        found=f"other bits than those before and after {named(journal)}: the weights were changed since",
        fix="`rlforget verify FOLDER --repair` sets its record aside; the weights stay as they are.",
    )
