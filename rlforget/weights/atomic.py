"""Outputs that appear whole or not at all: written beside their place, synced, then renamed into it.

A crash, a kill or a full disk at any moment leaves at the place what was there before or what was written, and nothing
in between. See `renaming` for how an existing folder is replaced in one step.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from rlforget.errors import OutputError
from rlforget.weights.drafts import aside, draft_file, draft_folder, remove
from rlforget.weights.locks import locked
from rlforget.weights.renaming import exchange, rename_into_free
from rlforget.weights.replacing import check_replaceable, files_in


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write; it takes its place at `path` when the block ends without an exception.

    Raises:
        OutputError: `path` exists and `force` is not given, or it cannot be written.
    """
    check_free(path, force=force)
    if path.is_dir():
        raise _output_error(path, "a file's path", "a folder", "Choose another path.")
    with cannot_write(path), draft_file(path.parent) as (draft, descriptor):
        with open(draft, "r+b") as file:
            yield file
        os.fsync(descriptor)
        check_free(path, force=force)
        _take_place(draft, path)


@contextmanager
def passing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write and read beside `path` that goes when the block ends.

    Where the process is killed before, the next write there clears it away.

    Raises:
        OutputError: It cannot be written.
    """
    with cannot_write(path), draft_file(path.parent) as (draft, _), open(draft, "r+b") as file:
        yield file


@contextmanager
def new_folder(path: Path, *, force: bool = False, brings: Collection[str] | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its place at `path` when the block ends without an exception.

    The files and folders written into it are synced before it does.

    Args:
        path: Where the folder is to appear. Its parent must exist.
        force: Replace a checkpoint folder that is there, and nothing else; see `check_replaceable`.
        brings: What will be written into it, as paths relative to it; None where that shows only at the end.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written.
        BusyError: Another process is writing the folder at `path` in place.
    """
    check_free(path, force=force)
    check_replaceable(path, brings)
    with cannot_write(path), draft_folder(path.parent) as draft:
        yield draft
        _sync_tree(draft)
        check_free(path, force=force)
        with locked(path) if path.is_dir() else nullcontext():
            check_replaceable(path, files_in(draft))
            _take_place(draft, path)


def check_free(path: Path, *, force: bool) -> None:
    """Check that `path` may be written.

    Raises:
        OutputError: It exists and `force` is not given, or the folder it is to lie in does not exist.
    """
    if not path.parent.is_dir():
        raise _output_error(path, f"a folder {path.parent}", "none", "Create it first.")
    if not force and os.path.lexists(path):
        raise _output_error(
            path,
            "nothing there yet",
            "an existing file or folder",
            "Choose another path, or replace it with --force (force=True).",
        )


def check_new_folder(path: Path, *, force: bool) -> None:
    """Check that `new_folder` would begin: for long work, before it starts rather than when it is done.

    Raises:
        OutputError: `path` exists and may not be replaced, or no folder can be made beside it.
    """
    check_free(path, force=force)
    check_replaceable(path, ())
    with cannot_write(path), draft_folder(path.parent):
        pass


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a crash."""
    sync(folder)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def cannot_write(
    path: Path, fix: str = "Free some space or choose another place; nothing was left behind."
) -> Iterator[None]:
    """Turn a fault of the system into the named one, for something that is written at `path`."""
    try:
        yield
    except OSError as error:
        raise _output_error(path, "a place that can be written", str(error), fix) from error


def _sync_tree(folder: Path) -> None:
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            if not os.path.islink(os.path.join(path, name)):
                sync(Path(path, name))
        sync(Path(path))


def _take_place(draft: Path, path: Path) -> None:
    """Rename `draft` to `path`, durably. What was there lies where the draft was afterwards, or is gone."""
    free = not os.path.lexists(path)
    if free:
        rename_into_free(draft, path)
    elif not exchange(draft, path):
        _replace(draft, path)
        return
    try:
        sync_folder(path.parent)
    except OSError:
        # On a disk that fails now, nothing says that the new names will last: the old state is the safer one.
        if free:
            os.rename(path, draft)
        else:
            exchange(draft, path)
        raise


def _replace(draft: Path, path: Path) -> None:
    """Replace what is at `path` where the system cannot exchange: a file at once, a folder in two steps."""
    if not path.is_dir():
        os.replace(draft, path)
        sync_folder(path.parent)
        return
    old = aside(path)
    os.rename(path, old)
    try:
        os.rename(draft, path)
    except BaseException:
        os.rename(old, path)
        raise
    sync_folder(path.parent)
    remove(old)


def _output_error(path: Path, expected: str, found: str, fix: str) -> OutputError:
    return OutputError(str(path), expected=expected, found=found, fix=fix)
