"""The delta files of a history: where they lie, whether they are what the index says, and the layers they are."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from rlforget.errors import HistoryError
from rlforget.history.index import DELTAS
from rlforget.history.stage import DeltaRecord, Stage


def delta_path(folder: Path, stage: Stage) -> Path:
    """Return the path of a stage's delta, a plain file of the size that the index says.

    Raises:
        HistoryError: It is missing, a link, or of another size.
    """
    path = folder / stage.delta.file
    found = None
    try:
        about = path.lstat()
        if (folder / DELTAS).is_symlink() or not stat.S_ISREG(about.st_mode):
            found = "a link, or no plain file"
        elif about.st_size != stage.delta.size:
            found = f"{about.st_size} bytes"
    except OSError as fault:
        found = os.strerror(fault.errno or 0)
    if found is not None:
        raise _bad_file(path, stage, f"a plain file of {stage.delta.size} bytes", found)
    return path


def check_delta_bytes(folder: Path, stage: Stage) -> None:
    """Hold a stage's delta against its checksum.

    Raises:
        HistoryError: It is missing, or another.
    """
    found = checksum(delta_path(folder, stage))
    if found != stage.delta.sha256:
        raise _bad_file(folder / stage.delta.file, stage, f"SHA-256 {stage.delta.sha256}", found)


def record_of(folder: Path, file: str) -> DeltaRecord:
    """Return what the index is to say of a delta that was written."""
    path = folder / file
    return DeltaRecord(file, path.stat().st_size, checksum(path))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bad_file(path: Path, stage: Stage, expected: str, found: str) -> HistoryError:
    fix = "Take it from a copy of the history."
    return HistoryError(f"{path}, the delta of {stage.name!r}", expected=expected, found=found, fix=fix)
