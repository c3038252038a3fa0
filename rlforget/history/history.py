"""A history: an append-only tree of stages that begins with a base."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from rlforget.history import beginning, graph, names
from rlforget.history.index import Base, Index, read_index
from rlforget.history.references import label, resolve
from rlforget.history.stage import Stage, lineage

if TYPE_CHECKING:
    from rlforget.weights import WeightsLike

WAIT = 60.0
"""Seconds that a writer waits for another one, unless it is told otherwise."""

Reference = str | Stage | None
"""What names a stage: see `History.stage`. None is the base."""


class History:
    """The stages of a model, each kept as the change to its parent: commit, log, diff, checkout, blame, verify.

    Everything lies in one folder of plain files: `history.json`, one file a stage in `deltas/`, and `base/` where the
    base was copied. Nothing that was committed is ever changed. What one method reads is one state of the history,
    whatever other processes commit meanwhile.

    Use `History.init` or `History.open`.
    """

    def __init__(self, folder: Path, base: WeightsLike | None) -> None:
        self.folder = folder
        self._moved_base = base

    @classmethod
    def init(cls, folder: str | PathLike[str], base: WeightsLike, *, copy: bool = False, wait: float = WAIT) -> History:
        """Begin a history.

        On a folder that is a history of the same base already, it only takes down where the base is now (or copies
        it): for a base that was moved, or a history that is to be sent away.

        Args:
            folder: Where; it is created where it is not there.
            base: The weights to begin with: a checkpoint, which is referred to by its path relative to `folder`, or
                weights in memory, which are always copied.
            copy: Copy the checkpoint into the history.
            wait: Seconds to wait for a process that is writing to it.

        Raises:
            HistoryError: The folder cannot be a history, is one of another base, or is in use.
            NotACheckpointError: `base` is a path without a readable checkpoint.
            OutputError: The folder cannot be written.
        """
        beginning.begin(Path(folder), base, copy=copy, wait=wait)
        return cls(Path(folder), None)

    @classmethod
    def open(cls, folder: str | PathLike[str], *, base: WeightsLike | None = None) -> History:
        """Open a history that is there.

        Args:
            folder: Its folder.
            base: The base, where it is elsewhere than the history says.

        Raises:
            HistoryError: It is no history, or its index is damaged, forged or of another version.
        """
        history = cls(Path(folder), base)
        history._index()
        return history

    def _index(self) -> Index:
        return read_index(self.folder)

    @property
    def base(self) -> Base:
        """What the history says of the weights that it begins with."""
        return self._index().base

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they were committed."""
        return self._index().stages

    @property
    def head(self) -> Stage | None:
        """The stage that was committed last; None: there is only the base."""
        return self._index().head

    @property
    def tags(self) -> dict[str, str]:
        """The tags, with the ids they stand for."""
        return dict(self._index().tags)

    def stage(self, reference: Reference = "HEAD") -> Stage | None:
        """Return the stage that a reference names; None is the base.

        Args:
            reference: `HEAD` (or `@`), the stage committed last; `base`; a name; a tag; the first digits of an id, at
                least 4. `~` or `^` after it is its parent, `~2` the one before.

        Raises:
            HistoryError: It names no stage, or more than one.
        """
        return resolve(self._index(), reference)

    def log(self, reference: str | Stage | None = None) -> list[Stage]:
        """Return the stages, the newest first.

        Args:
            reference: Only this stage and those it came from; None: all.

        Raises:
            HistoryError: It names no stage.
        """
        index = self._index()
        if reference is None:
            return list(reversed(index.stages))
        return list(lineage(index.by_id, resolve(index, reference)))

    def graph(self, reference: str | Stage | None = None) -> list[tuple[str, Stage | Base | None]]:
        """Return the picture of the log: for each line its text, and the stage or the base on it, if there is one."""
        index = self._index()
        nodes = [(stage.id, stage.parent or "base") for stage in self.log(reference)]
        known: dict[str | None, Stage | Base | None] = {None: None, "base": index.base}
        known.update(index.by_id)
        return [(text, known[node]) for text, node in graph.draw([*nodes, ("base", None)])]

    def tag(self, name: str, reference: str | Stage = "HEAD", *, force: bool = False, wait: float = WAIT) -> Stage:
        """Give a stage a further name.

        Args:
            name: Letters, digits, `.`, `_` and `-`, at most 60.
            reference: The stage.
            force: Take the tag from the stage that has it.
            wait: Seconds to wait for a process that is writing to the history.

        Raises:
            HistoryError: The name cannot be one or is taken, the stage is not there, or the history is in use.
            OutputError: The history cannot be written.
        """
        return names.tag(self.folder, name, reference, force=force, wait=wait)

    def untag(self, name: str, *, wait: float = WAIT) -> None:
        """Take a tag away.

        Raises:
            HistoryError: There is no such tag, or the history is in use.
            OutputError: The history cannot be written.
        """
        names.untag(self.folder, name, wait=wait)

    def __repr__(self) -> str:
        index = self._index()
        return f"History({str(self.folder)!r}, {len(index.stages)} stages, HEAD {label(index.head)})"
