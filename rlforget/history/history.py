"""A history: an append-only tree of stages that begins with a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rlforget.delta.compare import diff
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.delta import Delta
from rlforget.delta.renames import renames
from rlforget.history import beginning, committing, garbage, graph, names, tracing, verification
from rlforget.history import checkout as writing
from rlforget.history.blame import Blame, BlameSummary, Moment
from rlforget.history.committing import Committed, Details
from rlforget.history.garbage import Removed
from rlforget.history.index import Base, Index, read_index
from rlforget.history.references import label, resolve
from rlforget.history.stage import Stage, lineage
from rlforget.history.store import Store
from rlforget.history.verification import Verification
from rlforget.weights import WeightsLike
from rlforget.weights.ahead import Progress
from rlforget.weights.gathering import first_reads
from rlforget.weights.opening import open_shards

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

    def __init__(self, folder: Path, base: str | PathLike[str] | None) -> None:
        self.folder = folder
        self.store = Store(folder, base)

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
    def open(cls, folder: str | PathLike[str], *, base: str | PathLike[str] | None = None) -> History:
        """Open a history that is there.

        Args:
            folder: Its folder.
            base: The checkpoint it begins with, where that is elsewhere than the history says.

        Raises:
            HistoryError: It is no history, or its index is damaged, forged or of another version.
        """
        history = cls(Path(folder), base)
        read_index(history.folder)
        return history

    @property
    def index(self) -> Index:
        """What the history says now: base, stages and tags, all of one moment."""
        return read_index(self.folder)

    @property
    def base(self) -> Base:
        """What the history says of the weights that it begins with."""
        return self.index.base

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they were committed."""
        return self.index.stages

    @property
    def head(self) -> Stage | None:
        """The stage that was committed last; None: there is only the base."""
        return self.index.head

    @property
    def tags(self) -> dict[str, str]:
        """The tags, with the ids they stand for."""
        return dict(self.index.tags)

    def stage(self, reference: Reference = "HEAD") -> Stage | None:
        """Return the stage that a reference names; None is the base.

        Args:
            reference: `HEAD` (or `@`), the stage committed last; `base`; a name; a tag; the first digits of an id, at
                least 4. `~` or `^` after it is its parent, `~2` the one before.

        Raises:
            HistoryError: It names no stage, or more than one.
        """
        return resolve(self.index, reference)

    def log(self, reference: str | Stage | None = None) -> list[Stage]:
        """Return the stages, the newest first.

        Args:
            reference: Only this stage and those it came from; None: all.

        Raises:
            HistoryError: It names no stage.
        """
        index = self.index
        if reference is None:
            return list(reversed(index.stages))
        return list(lineage(index.by_id, resolve(index, reference)))

    def graph(self, reference: str | Stage | None = None) -> list[tuple[str, Stage | Base | None]]:
        """Return the picture of the log: for each line its text, and the stage or the base on it, if there is one."""
        index = self.index
        nodes = [(stage.id, stage.parent or "base") for stage in self.log(reference)]
        known: dict[str | None, Stage | Base | None] = {None: None, "base": index.base}
        known.update(index.by_id)
        return [(text, known[node]) for text, node in graph.draw([*nodes, ("base", None)])]

    def commit(
        self,
        weights: Committed,
        *,
        name: str | None = None,
        domain: str | None = None,
        message: str = "",
        parent: Reference = "HEAD",
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        rename: Mapping[str, str] | None = None,
        allow_empty: bool = False,
        wait: float = WAIT,
        progress: Progress | None = None,
    ) -> Stage:
        """Add a stage: what changed between its parent and `weights`, whatever that is.

        Both are read once, range by range. The stage is there as a whole when this returns, and not at all before.

        Args:
            weights: A checkpoint, a module or {name: tensor}; or a delta that begins with the parent: in memory, its
                file, or the path of a `*.delta.safetensors`. Of weights that are spread over ranks, every rank calls
                this; the first commits, and asks the others for what they hold, range by range.
            name: Its name: letters, digits, `.`, `_` and `-`. None: the domain's, made unique by a number.
            domain: The skill that was trained.
            message: What was done; its first line is shown in the log.
            parent: The stage it came from; by default the one committed last.
            config: The training configuration, a JSON object.
            metrics: What was measured, a JSON object.
            rename: {name in the parent: name in `weights`}, for tensors that are not called the same.
            allow_empty: Add a stage also where nothing changed.
            wait: Seconds to wait for a process that is writing to the history.
            progress: Told how many coordinates were read.

        Raises:
            NothingToCommitError: Nothing changed.
            HistoryError: The name is taken, the parent is not there, the base or a delta was changed since it was
                committed, or the history is in use.
            WrongBaseError: A delta that does not begin with the parent.
            LayoutError: The weights have no tensor in common with the parent's.
            NotACheckpointError: A path that holds no readable checkpoint.
            OutputError: The history cannot be written.
        """
        details = Details(name, domain, message, parent, config or {}, metrics or {}, rename or {}, allow_empty)
        spread = open_shards(weights)
        if spread is not None:
            return first_reads(spread, lambda whole: committing.commit(self.store, whole, details, wait=wait))
        return committing.commit(self.store, weights, details, wait=wait, progress=progress)

    def weights(self, reference: Reference = "HEAD") -> ComposedWeights:
        """Return the weights of a stage, composed of the base and the deltas on the way as they are read.

        Raises:
            HistoryError: It names no stage; or the base or a delta is missing or damaged.
            DeltaFileError: A delta is damaged.
        """
        index = self.index
        return self.store.weights(index, resolve(index, reference))

    def delta(self, before: Reference, after: Reference = "HEAD") -> Delta:
        """Return what changed between any two stages, in memory; tensors that were renamed on the way are known.

        Raises:
            HistoryError: One names no stage; or the base or a delta is missing or damaged.
            DeltaFileError: A delta is damaged.
        """
        index = self.index
        old, new = (self.store.weights(index, resolve(index, reference)) for reference in (before, after))
        return diff(old, new, rename=renames(old, new))

    def checkout(
        self,
        reference: Reference,
        out: str | PathLike[str],
        *,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write a stage as a checkpoint in the shape of the base, in one pass over the base and the deltas.

        Nothing appears at `out` unless every tensor has the fingerprint that was committed.

        Args:
            reference: The stage.
            out: The folder to create, or the file where the base is a file.
            force: Replace a checkpoint that is there.
            dry_run: Read and check everything, and write nothing.
            progress: Told how many coordinates were written.

        Raises:
            HistoryError: It names no stage; or the base or a delta is missing or damaged.
            WrongBaseError: The base is not the one that the history began with.
            DeltaFileError: A delta is damaged.
            OutputError: `out` exists, or cannot be written.
        """
        index = self.index
        stage = resolve(index, reference)
        writing.checkout(self.store, index, stage, Path(out), force=force, dry_run=dry_run, progress=progress)

    def blame(self, tensor: str, reference: Reference = "HEAD") -> Blame:
        """Find for each coordinate of a tensor which stage last changed it, how often it was changed, and how often
        that brought back bits from an earlier stage.

        Args:
            tensor: Its name at the stage.
            reference: The stage; those it came from are blamed.

        Raises:
            UnknownNameError: The stage has no such tensor.
            HistoryError: It names no stage; or the base or a delta is missing or damaged.
        """
        return tracing.blame(*self._line(reference), tensor)

    def blame_summary(self, reference: Reference = "HEAD", *, progress: Progress | None = None) -> BlameSummary:
        """Count for every tensor how many coordinates each stage last changed, in bounded memory; see `blame`."""
        return tracing.summarise(*self._line(reference), progress)

    def biography(self, tensor: str, at: Sequence[int], reference: Reference = "HEAD") -> list[Moment]:
        """Return the value of one coordinate in the base and at each stage up to one.

        Args:
            tensor: Its name at the stage.
            at: Its index along each axis.
            reference: The stage.

        Raises:
            CoordinateError: It is outside of the tensor.
            UnknownNameError: The stage has no such tensor.
            HistoryError: It names no stage; or the base or a delta is missing or damaged.
        """
        return tracing.biography(*self._line(reference), tensor, at)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Read everything again: the base, every delta's frames and checksums, every stage's weights as composed.

        Returns:
            What is wrong, if anything is; nothing is raised for it.

        Raises:
            HistoryError: The index itself is damaged.
        """
        return verification.verify(self.store, self.index, progress)

    def gc(self, *, drop: Sequence[str | Stage] = (), dry_run: bool = False, wait: float = WAIT) -> Removed:
        """Remove what no stage needs: what a killed process left, and stages that are dropped by name.

        Args:
            drop: Stages to remove, each with all that came from it. None of them may have a tag.
            dry_run: Only say what would be removed.
            wait: Seconds to wait for a process that is writing to the history.

        Raises:
            HistoryError: One names no stage, or has a tag; or the history is in use.
            OutputError: Something cannot be removed.
        """
        return garbage.collect(self.folder, drop, dry_run=dry_run, wait=wait)

    def _line(self, reference: Reference) -> tuple[ComposedWeights, tuple[Stage, ...]]:
        """Return a stage's weights, and the stages on the way to it, the oldest first."""
        index = self.index
        stage = resolve(index, reference)
        return self.store.weights(index, stage), tuple(reversed(list(lineage(index.by_id, stage))))

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
        index = self.index
        return f"History({str(self.folder)!r}, {len(index.stages)} stages, HEAD {label(index.head)})"
