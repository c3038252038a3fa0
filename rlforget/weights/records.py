"""Where the records of in-place writes lie, and what their names say."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from rlforget.errors import NotACheckpointError
from rlforget.weights.atomic import sync_folder
from rlforget.weights.checkpoint_files import shard_paths

STATE = ".rlforget"
"""The folder of the records, within that of the checkpoint."""

_UNFINISHED, _FINISHED, _UNFIT = ".unfinished.safetensors", ".undo.safetensors", ".unfit.safetensors"


def home(path: Path) -> Path:
    """Return the folder of the checkpoint at `path`: for one of a single file, the folder it lies in."""
    return Path(os.path.realpath(path if path.is_dir() else path.parent))


def homes(path: Path) -> list[Path]:
    """Return every folder whose records may be of the checkpoint at `path`: `home`, and those that links lead to."""
    folders = [home(path)]
    with suppress(NotACheckpointError, OSError):
        folders += [Path(os.path.realpath(shard)).parent for shard in shard_paths(path)]
    return list(dict.fromkeys(folders))


def unfinished(folder: Path) -> list[Path]:
    """Return the records of writes that may be half done, the last first."""
    return _listed(folder, _UNFINISHED)[::-1]


def finished(folder: Path) -> list[Path]:
    """Return the records of writes that can be undone, the last first."""
    return _listed(folder, _FINISHED)[::-1]


def unfit(folder: Path) -> list[Path]:
    """Return the records that were set aside."""
    return _listed(folder, _UNFIT)


def next_number(folder: Path) -> int:
    """Return the number of the next write."""
    return max(map(number_of, _listed(folder, "")), default=0) + 1


def number_of(record: Path) -> int:
    """Return the number of a record in its folder."""
    digits = record.name.partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


def unfinished_path(folder: Path, number: int) -> Path:
    """Return where the record of a write lies while that may be half done."""
    return folder / STATE / f"{number:06d}{_UNFINISHED}"


def as_unfinished(folder: Path, number: int) -> Path | None:
    """Name a record, for good, as that of a write that may be half done. None where there is no such record."""
    path = unfinished_path(folder, number)
    if path.exists():
        return path
    record = path.with_name(f"{number:06d}{_FINISHED}")
    return _renamed(record, _UNFINISHED) if record.exists() else None


def as_finished(record: Path) -> Path:
    """Name a record, for good, as one that can be undone."""
    return _renamed(record, _FINISHED)


def set_aside(record: Path) -> Path:
    """Name a record as one that is of no use, for good."""
    return _renamed(record, _UNFIT)


def drop(record: Path) -> None:
    """Remove the record of a write that has been taken back, and the folder of the records with the last one."""
    record.unlink()
    # Where its name outlives a loss of power it is taken back again, which changes nothing.
    with suppress(OSError):
        sync_folder(record.parent)
    remove_if_empty(record.parent.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of the records where there are none."""
    with suppress(OSError):
        (folder / STATE).rmdir()


def _renamed(record: Path, suffix: str) -> Path:
    path = record.with_name(f"{number_of(record):06d}{suffix}")
    os.rename(record, path)
    try:
        sync_folder(record.parent)
    except OSError:
        os.rename(path, record)
        raise
    return path


def _listed(folder: Path, suffix: str) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        state = folder / STATE
        return sorted((state / name for name in os.listdir(state) if name.endswith(suffix)), key=number_of)
    return []
