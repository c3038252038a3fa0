"""Bringing the stages of a sequence's run into a history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlforget.delta.layers import Layer
    from rlforget.history import History, Stage
    from rlforget.training.run_folder import StageFolder


def commit_run(
    history: History, run: Path, *, parent: str | None, wait: float, dry_run: bool
) -> tuple[list[Stage], list[str]]:
    """Commit every stage of a run, with its configuration, scores and branches; those that are there already are kept.

    Args:
        history: The history, one of whose stages is what the run began with.
        run: The run's folder.
        parent: That stage; None: the last one with the weights that the run's first delta begins with.
        wait: Seconds to wait for a process that is writing to the history.
        dry_run: Commit nothing.

    Returns:
        The stages that were committed, and the names in the run of those that were, or would be.

    Raises:
        ConfigError: The run has no stages, or a damaged one.
        WrongBaseError: The run did not begin with the weights of `parent`.
        RlforgetError: Whatever else `History.commit` raises.
    """
    from rlforget.errors import ConfigError
    from rlforget.training.run_folder import RunFolder

    finished = RunFolder(run).finished()
    if len(finished) < 2:
        fix = "Give the folder that `rlforget sequence` wrote."
        raise ConfigError(str(run), expected="the run of a sequence", found="no finished stages", fix=fix)
    base, *stages = finished
    at = {base.name: _origin(history, stages[0]) if parent is None else history.stage(parent)}
    new: list[Stage] = []
    missing: list[str] = []
    for stage in stages:
        origin = stage.record["parent"]
        found = _known(history, stage, at[origin]) if origin in at else None
        if found is None:
            missing.append(stage.name)
            if dry_run:
                continue
            found = _commit(history, run, stage, at[origin], wait)
            new.append(found)
        at[stage.name] = found
    return new, missing


def _origin(history: History, first: StageFolder) -> Stage | None:
    """Return the stage that a run began with; HEAD where none has its weights, which `commit` then refuses."""
    from rlforget.history.store import begins_with

    index, layer = history.index, _layer(first)
    fitting = (one for one in (None, *reversed(index.stages)) if begins_with(history.store, index, one, layer))
    return next(fitting, index.head)


def _known(history: History, stage: StageFolder, parent: Stage | None) -> Stage | None:
    """Return the stage of the history that is this one already: the same weights on the same parent.

    A run may have tied what the history keeps apart. So it is the weights that are compared, as the history would take
    them down, and not the run's own digest of them.
    """
    from rlforget.history.store import digest_after

    index = history.index
    after = digest_after(history.store.weights(index, parent, _layer(stage)))
    return next((one for one in index.children(parent) if one.after == after), None)


def _layer(stage: StageFolder) -> Layer:
    from rlforget.delta.file import DeltaFile
    from rlforget.delta.layers import FileLayer

    return FileLayer(DeltaFile(stage.delta_path))


def _commit(history: History, run: Path, stage: StageFolder, parent: Stage | None, wait: float) -> Stage:
    record = stage.record
    config = record.get("config", {})
    return history.commit(
        stage.delta_path,
        domain=config.get("domain", stage.name),
        message=f"{stage.name}, of the run {run.name}",
        parent=parent,
        config=config,
        metrics={"scores": record.get("scores", {}), "training": record.get("result", {})},
        allow_empty=True,
        wait=wait,
    )
