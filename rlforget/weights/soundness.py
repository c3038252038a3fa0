"""Whether a checkpoint is sound: its files and index, and what writes that were cut short left in and beside it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rlforget.errors import JournalError, NotACheckpointError, OutputError, UnfinishedWriteError, WrongBaseError
from rlforget.weights import records
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.distributed_metadata import is_distributed
from rlforget.weights.drafts import clear_leftovers, leftovers
from rlforget.weights.journal import Journal
from rlforget.weights.locks import locked
from rlforget.weights.recovering import check_left, recover_folder
from rlforget.weights.shards import Shards


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: `unreadable` (no checkpoint, or one that is damaged), `unfinished` (a write cut short in the weights),
            `leftover` (a draft of a process that died), or `record` (of an in-place write, damaged or not fitting).
        path: The file or folder at fault.
        found: What is wrong with it.
        repaired: Whether it was put right.
    """

    kind: str
    path: Path
    found: str
    repaired: bool = False


@dataclass(frozen=True)
class Soundness:
    """What was found of a checkpoint.

    Attributes:
        path: The checkpoint.
        tensors: How many it holds; 0 where it cannot be read.
        files: How many files hold them.
        undoable: How many in-place writes can be undone.
        problems: What is wrong, or was.
    """

    path: Path
    tensors: int
    files: int
    undoable: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or is still."""
        return all(problem.repaired for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `sound`, for programs."""
        problems = [{**asdict(problem), "path": str(problem.path)} for problem in self.problems]
        return {**asdict(self), "path": str(self.path), "problems": problems, "sound": self.sound}


def verify(path: str | PathLike[str], *, repair: bool = False) -> Soundness:
    """Check a checkpoint on disk, and put right what a crash left.

    Checked are: every file's header against its size (in a folder of torch.distributed.checkpoint every item's), the
    index or the metadata against the files, in-place writes that were cut short, drafts of processes that died (in the
    folder and beside it), and whether the last record for `undo` fits what is there. The values themselves carry no
    check: compare fingerprints for those.

    Args:
        path: A checkpoint folder or `.safetensors` file.
        repair: Take back what was cut short, clear away drafts, and set aside records that are of no use (as
            `*.unfit.safetensors`). Without it nothing is changed.

    Raises:
        BusyError: A process is writing it in place.
    """
    path = Path(path)
    folder = records.home(path)
    problems: list[Problem] = []
    if folder.is_dir():
        for place in records.homes(path):
            with locked(place):
                pass  # nobody is at work: what looks cut short is
            problems += _unfinished(place, repair=repair)
        problems += _records(folder, repair=repair)
        problems += _drafts(path, folder, repair=repair)
    tensors = files = 0
    try:
        checkpoint = DistributedWeights(path) if is_distributed(path) else CheckpointWeights(path, recovered=False)
        if isinstance(checkpoint, DistributedWeights):
            checkpoint.check_items()
        tensors, files = len(checkpoint.names()), len(checkpoint.shards)
    except (NotACheckpointError, OSError) as error:
        problems.append(Problem("unreadable", path, str(error)))
    undoable = len(records.finished(folder)) - sum(p.kind == "record" and not p.repaired for p in problems)
    return Soundness(path, tensors, files, undoable, tuple(problems))


def _unfinished(folder: Path, *, repair: bool) -> list[Problem]:
    problems = []
    for record in records.unfinished(folder):
        found, repaired = "an in-place write that was cut short", False
        if repair:
            try:
                recover_folder(folder)
                repaired = not record.exists()  # or it was taken back along with the one before
            except (WrongBaseError, JournalError, OutputError) as error:
                found, repaired = str(error), _set_aside(record)
            except UnfinishedWriteError as error:
                found = str(error)
        problems.append(Problem("unfinished", record, found, repaired))
    return problems


def _records(folder: Path, *, repair: bool) -> list[Problem]:
    """Look at every record, and hold the last one against the weights: those before it fit what undoing it leaves."""
    problems = []
    for position, record in enumerate(records.finished(folder)):
        try:
            journal = Journal(record)
            with Shards(folder, journal.shards, journal.touched, write=False) as shards:
                check_left(journal, shards if position == 0 else None)
        except (JournalError, WrongBaseError, OutputError, OSError) as error:
            problems.append(Problem("record", record, str(error), repaired=repair and _set_aside(record)))
    return problems


def _drafts(path: Path, folder: Path, *, repair: bool) -> list[Problem]:
    places = [folder / records.STATE, folder, *([folder.parent] if path.is_dir() else [])]
    drafts = [draft for place in places for draft in leftovers(place)]
    if repair:
        for place in places:
            clear_leftovers(place)
        records.remove_if_empty(folder)
    what = "a draft of a process that died"
    return [Problem("leftover", draft, what, repaired=repair and not os.path.lexists(draft)) for draft in drafts]


def _set_aside(record: Path) -> bool:
    try:
        records.set_aside(record)
    except OSError:
        return False
    return True
