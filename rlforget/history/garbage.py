"""Removing what no stage needs: what a killed process left, and stages that are dropped by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.errors import HistoryError, OutputError
from rlforget.history.index import DELTAS, Index, read_index, write_index
from rlforget.history.lock import locked
from rlforget.history.references import resolve
from rlforget.history.schema import SUFFIX
from rlforget.history.stage import Stage
from rlforget.weights.drafts import clear_leftovers, leftovers


@dataclass(frozen=True)
class Removed:
    """What was removed, or would be.

    Attributes:
        stages: The stages, in the order in which they were committed.
        files: {path inside the history: bytes}.
    """

    stages: tuple[Stage, ...]
    files: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"stages": [{"id": stage.id, "name": stage.name} for stage in self.stages], "files": dict(self.files)}


def collect(folder: Path, drop: Sequence[str | Stage], *, dry_run: bool, wait: float) -> Removed:
    """Remove what no stage needs; see `History.gc`."""
    with nullcontext() if dry_run else locked(folder, wait):
        index = read_index(folder)
        dropped = _dropped(index, drop)
        kept = index.without(dropped)
        garbage = _orphans(folder, kept) + leftovers(folder) + leftovers(folder / DELTAS)
        removed = Removed(dropped, {str(path.relative_to(folder)): _size(path) for path in sorted(garbage)})
        if not dry_run:
            if dropped:
                write_index(folder, kept)  # first, so that no index ever names a file that is gone
            for orphan in _orphans(folder, kept):
                _remove(orphan)
            for place in (folder, folder / DELTAS):
                clear_leftovers(place)
    return removed


def _dropped(index: Index, drop: Sequence[str | Stage]) -> tuple[Stage, ...]:
    """Return the stages that are named, and all that came from them.

    Raises:
        HistoryError: One is the base, or has a tag.
    """
    gone: set[str] = set()
    for reference in drop:
        stage = resolve(index, reference)
        if stage is None:
            fix = "Remove the folder, to be rid of the history."
            raise HistoryError(f"dropping {reference!r}", expected="a stage", found="the base", fix=fix)
        gone.add(stage.id)
    for stage in index.stages:  # a parent before its children
        if stage.parent in gone:
            gone.add(stage.id)
    dropped = tuple(stage for stage in index.stages if stage.id in gone)
    for stage in dropped:
        if index.tags_of(stage):
            raise HistoryError(
                f"dropping {stage.name!r}",
                expected="stages without tags",
                found=f"the tag {index.tags_of(stage)[0]!r} on it",
                fix="Take the tag away first.",
            )
    return dropped


def _orphans(folder: Path, index: Index) -> list[Path]:
    """Return the delta files that no stage of the index has."""
    deltas = folder / DELTAS
    if deltas.is_symlink() or not deltas.is_dir():
        return []
    named = {folder / stage.delta.file for stage in index.stages}
    return [path for path in deltas.iterdir() if path.name.endswith(SUFFIX) and path not in named]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # another process has just cleared it away


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        fix = "Remove it by hand."
        raise OutputError(str(path), expected="a file that can be removed", found=str(fault), fix=fix) from fault
