"""Drafts: files and folders that are written beside their place before they take it.

A draft is locked by the process that writes it. One that nobody holds was left by a process that died, and the next
write beside it clears it away.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlforget.weights.locks import is_at, try_lock
from rlforget.weights.renaming import rename_into_free

_LEFTOVER = re.compile(r"\.rlforget-[0-9a-f]{16}\.(?:partial|before-(?P<belongs>.+))", re.DOTALL)


def is_draft(name: str) -> bool:
    """Whether a file or folder of this name is a draft."""
    return _LEFTOVER.fullmatch(name) is not None


@contextmanager
def draft_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the path and the descriptor of a new, locked file in `folder`; what lies there afterwards is removed."""
    clear_leftovers(folder)
    while True:
        path = _name_in(folder, "partial")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if _locked(descriptor, path):
                yield path, descriptor
                return
        finally:
            remove(path)
            os.close(descriptor)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Yield the path of a new, locked folder in `folder`; what lies there afterwards is removed."""
    clear_leftovers(folder)
    while True:
        path = _name_in(folder, "partial")
        path.mkdir()
        descriptor = None
        try:
            with suppress(FileNotFoundError):  # taken for a dead one's, too, and gone
                descriptor = os.open(path, os.O_RDONLY)
            if descriptor is not None and _locked(descriptor, path):
                yield path
                return
        finally:
            remove(path)
            if descriptor is not None:
                os.close(descriptor)


def aside(path: Path) -> Path:
    """Return where to move the folder at `path` while another takes its place."""
    return _name_in(path.parent, f"before-{path.name}")


def leftovers(folder: Path) -> list[Path]:
    """Return the drafts in `folder` that no living process holds."""
    found = []
    for path in _candidates(folder):
        with suppress(OSError):
            descriptor = try_lock(path)
            if descriptor is not None:
                os.close(descriptor)
                found.append(path)
    return found


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove the drafts in `folder` that no living process holds, and put back a folder that one had moved aside.

    What cannot be removed (it may be someone else's) is left.

    Returns:
        What was cleared.
    """
    cleared = []
    for path in _candidates(folder):
        with suppress(OSError):
            descriptor = try_lock(path)
            if descriptor is None:
                continue
            try:
                _clear(path)
            finally:
                os.close(descriptor)
            cleared.append(path)
    return cleared


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    match = _LEFTOVER.fullmatch(path.name)
    belongs = match and match["belongs"]
    if belongs and not os.path.lexists(path.parent / belongs):
        rename_into_free(path, path.parent / belongs)
    else:
        remove(path)


def _candidates(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if is_draft(entry.name)]
    return []


def _locked(descriptor: int, path: Path) -> bool:
    """Lock a draft just made; False where another process took it for a dead one's before that, and removed it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return is_at(descriptor, path)


def _name_in(folder: Path, kind: str) -> Path:
    return folder / f".rlforget-{secrets.token_hex(8)}.{kind}"
