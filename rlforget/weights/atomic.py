"""Outputs that appear whole or not at all: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rlforget.errors import OutputError


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write; it takes its place at `path` when the block ends without an exception.

    Raises:
        OutputError: `path` exists and `force` is not given, or it cannot be written.
    """
    check_free(path, force=force)
    if path.is_dir():
        raise _output_error(path, "a file's path", "a folder", "Choose another path.")
    draft = _draft_of(path)
    with _cannot_write(path):
        try:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check_free(path, force=force)
            os.replace(draft, path)
            sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its place at `path` when the block ends without an exception.

    The files written into it are synced before it does.

    Args:
        path: Where the folder is to appear. Its parent must exist.
        force: Replace a checkpoint folder that is there. Any other folder is never replaced.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written.
    """
    check_free(path, force=force)
    _check_replaceable(path)
    draft = _draft_of(path)
    with _cannot_write(path):
        try:
            draft.mkdir()
            yield draft
            for file in draft.iterdir():
                _sync(file)
            sync_folder(draft)
            check_free(path, force=force)
            _swap_in(draft, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_free(path: Path, *, force: bool) -> None:
    """Check that `path` may be written.

    Raises:
        OutputError: It exists and `force` is not given, or the folder it is to lie in does not exist.
    """
    if not path.parent.is_dir():
        raise _output_error(path, f"a folder {path.parent}", "none", "Create it first.")
    if not force and os.path.lexists(path):
        raise _output_error(path, "nothing there yet", "an existing file or folder", "Choose another path, or force.")


def check_new_folder(path: Path, *, force: bool) -> None:
    """Check that `new_folder` would begin: for long work, before it starts rather than when it is done.

    Raises:
        OutputError: `path` exists and may not be replaced, or no folder can be made beside it.
    """
    check_free(path, force=force)
    _check_replaceable(path)
    draft = _draft_of(path)
    with _cannot_write(path):
        draft.mkdir()
        draft.rmdir()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a crash."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise _output_error(path, "a folder", "a file or a link", "Choose another path.")
    if any(path.iterdir()) and not any(path.glob("*.safetensors")):
        raise _output_error(path, "a checkpoint folder to replace", "a folder without one", "Choose another path.")


def _swap_in(draft: Path, path: Path) -> None:
    """Rename `draft` to `path`, moving aside and then deleting the folder that is there."""
    if not path.is_dir():
        os.rename(draft, path)
        return
    old = _draft_of(path)
    os.rename(path, old)
    try:
        os.rename(draft, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _draft_of(path: Path) -> Path:
    return path.parent / f".rlforget-{secrets.token_hex(8)}.partial"


@contextmanager
def _cannot_write(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "Free some space or choose another place; nothing was left behind."
        raise _output_error(path, "a place that can be written", str(error), fix) from error


def _output_error(path: Path, expected: str, found: str, fix: str) -> OutputError:
    return OutputError(str(path), expected=expected, found=found, fix=fix)
