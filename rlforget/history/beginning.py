"""Beginning a history, and finding the weights it begins with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePath

from rlforget.errors import HistoryError, NotACheckpointError, OutputError
from rlforget.history.files import checksum
from rlforget.history.index import COPIED_BASE, DELTAS, Base, Index, is_history, read_index, write_index
from rlforget.history.lock import locked
from rlforget.weights import Weights, WeightsLike, open_weights, save_checkpoint
from rlforget.weights.atomic import sync_folder
from rlforget.weights.digest import weights_digest
from rlforget.weights.opening import Checkpoint, open_checkpoint


def begin(folder: Path, base: WeightsLike, *, copy: bool, wait: float, dry_run: bool = False) -> Base:
    """Write the first index of a history, or give one that is there a new place for the same base.

    Returns:
        What the index says, or would say, of the base.

    Raises:
        HistoryError: The folder cannot be a history, or it is one of another base.
        NotACheckpointError: `base` is a path without a readable checkpoint.
        OutputError: The folder cannot be written.
    """
    source = open_weights(base)
    _check_apart(folder, source)
    if isinstance(source, Checkpoint):
        _check_names(source.files())
    fingerprint = weights_digest(source)
    copy = copy or not isinstance(source, Checkpoint)
    if dry_run:
        _current(folder, fingerprint)
        return _record(folder, source, fingerprint, copied=copy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        fix = "Choose another place."
        raise OutputError(str(folder), expected="a folder's place", found=str(fault), fix=fix) from fault
    with locked(folder, wait):
        index = _current(folder, fingerprint)
        record = _record(folder, _copied(folder, source, fingerprint) if copy else source, fingerprint, copied=copy)
        write_index(folder, Index(record) if index is None else replace(index, base=record))
    sync_folder(folder.parent)
    return record


def base_weights(folder: Path, base: Base, moved_to: str | PathLike[str] | None) -> Checkpoint:
    """Open the weights that a history begins with.

    Args:
        folder: The history's folder.
        base: Its record of them.
        moved_to: Where they are, where that is not what the record says.

    Raises:
        HistoryError: They are not where they should be.
        NotACheckpointError: `moved_to` holds no readable checkpoint.
    """
    if moved_to is not None:
        return open_checkpoint(Path(moved_to))
    place = Path(os.path.realpath(folder)) / base.path
    try:
        if base.copied and place.is_dir() and any(path.is_symlink() for path in (place, *place.iterdir())):
            fix = "Copy its target here."
            raise HistoryError(str(place), expected="the history's own copy", found="a link", fix=fix)
        return open_checkpoint(Path(os.path.normpath(place)))
    except (NotACheckpointError, OSError) as fault:
        raise HistoryError(
            str(folder),
            expected=f"its base in {os.path.normpath(place)}",
            found=fault.found if isinstance(fault, NotACheckpointError) else os.strerror(fault.errno or 0),
            fix="Put it back, or run init on this history with the place where the base is now.",
        ) from fault


def file_checksums(files: Mapping[str, Path] | None) -> dict[str, str]:
    """Return the SHA-256 of each file, by name.

    Raises:
        HistoryError: A name is no UTF-8.
    """
    _check_names(files)
    return {name: checksum(path) for name, path in (files or {}).items()}


def _check_names(files: Mapping[str, Path] | None) -> None:
    """Check that an index can hold the names of the files beside a base."""
    for name, path in (files or {}).items():
        try:
            name.encode()
        except UnicodeEncodeError as fault:
            expected, fix = "a file name in UTF-8", "Rename it, or move it out of the checkpoint."
            raise HistoryError(ascii(str(path)), expected=expected, found="other bytes", fix=fix) from fault


def _current(folder: Path, fingerprint: str) -> Index | None:
    """Return the index of the history that the folder is already, after checking that it is one of this base."""
    if is_history(folder):
        index = read_index(folder)
        if index.base.fingerprint != fingerprint:
            raise HistoryError(
                str(folder),
                expected=f"its own base, {index.base.fingerprint}",
                found=f"other weights, {fingerprint}",
                fix="A history keeps its base: commit these weights as a stage, or begin another history.",
            )
        return index
    if (folder / DELTAS).is_symlink() or ((folder / DELTAS).exists() and any((folder / DELTAS).iterdir())):
        fix = "Choose another folder."
        raise HistoryError(str(folder), expected="a folder without deltas", found=f"files in {DELTAS}", fix=fix)
    return None


def _copied(folder: Path, source: Weights, fingerprint: str) -> Checkpoint:
    """Copy the base into the history. A whole copy that is there already, from an init that was killed, is taken."""
    place = folder / COPIED_BASE
    if not place.is_dir() or place.is_symlink():
        like = source.path if isinstance(source, Checkpoint) and source.path.is_dir() else None
        save_checkpoint(place, source, like=like)
    copy = open_checkpoint(place)
    if weights_digest(copy) != fingerprint:
        fix = "Rename it, or begin the history in another folder."
        raise HistoryError(str(place), expected="nothing, or a copy of the base", found="other weights", fix=fix)
    return copy


def _record(folder: Path, placed: Weights, fingerprint: str, *, copied: bool) -> Base:
    path = COPIED_BASE
    if isinstance(placed, Checkpoint) and not copied:
        relative = os.path.relpath(os.path.realpath(placed.path), os.path.realpath(folder))
        path = PurePath(relative).as_posix()
    files = file_checksums(placed.files()) if isinstance(placed, Checkpoint) else {}
    # A base that lies where a copy would be is one: it goes wherever the history goes.
    return Base(path, path == COPIED_BASE, fingerprint, files)


def _check_apart(folder: Path, source: Weights) -> None:
    if isinstance(source, Checkpoint) and os.path.realpath(source.path) == os.path.realpath(folder):
        raise HistoryError(
            str(folder),
            expected="a folder of its own",
            found="the checkpoint itself, whose files a history's would be",
            fix="Begin the history beside it.",
        )
