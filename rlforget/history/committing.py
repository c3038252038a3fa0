"""Adding a stage: the change to its parent as a file first, then the index that names it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from rlforget.delta.delta import Delta
from rlforget.delta.file import DeltaFile
from rlforget.delta.layers import FileLayer, Layer, MemoryLayer
from rlforget.delta.stats import DeltaStats
from rlforget.delta.streaming import measure_diff, write_diff
from rlforget.errors import HistoryError, NothingToCommitError, OutputError, WrongBaseError
from rlforget.history.files import record_of
from rlforget.history.index import DELTAS, Index, read_index, write_index
from rlforget.history.lock import locked
from rlforget.history.names import check_new_name, free_name
from rlforget.history.references import label, resolve
from rlforget.history.schema import SUFFIX, Malformed, check_object, check_text
from rlforget.history.stage import Stage, stage_id
from rlforget.history.store import Store, digest_after, digest_before, fingerprint_of
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import sync_folder

Committed: TypeAlias = WeightsLike | Delta | DeltaFile
"""What can be committed: weights; or a delta on the parent: in memory, its file, or that file's path."""


@dataclass(frozen=True)
class Details:
    """What is said about a stage; see `History.commit`."""

    name: str | None = None
    domain: str | None = None
    message: str = ""
    parent: str | Stage | None = "HEAD"
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    allow_empty: bool = False


def commit(
    store: Store, committed: Committed, details: Details, *, wait: float, progress: Progress | None = None
) -> Stage:
    """Add a stage; see `History.commit`."""
    with locked(store.folder, wait):
        index = read_index(store.folder)
        plan = _plan(store, index, committed, details)
        with _new_delta(store.folder, f"{DELTAS}/{_number(index):04d}-{plan.name}{SUFFIX}") as path:
            stats = write_diff(plan.before, plan.after, path, rename=details.rename, force=True, progress=progress)
            _check_changed(stats, plan.parent, details)
            stage = _stage(store, index, plan, details, stats, path)
            write_index(store.folder, index.with_stage(stage))
    return stage


def preview(
    store: Store, committed: Committed, details: Details, *, progress: Progress | None = None
) -> tuple[str, DeltaStats]:
    """Return the name that a stage would get and what changed, after the checks that `commit` makes.

    Raises:
        HistoryError: As `commit`.
    """
    plan = _plan(store, read_index(store.folder), committed, details)
    stats = measure_diff(plan.before, plan.after, rename=details.rename, progress=progress)
    _check_changed(stats, plan.parent, details)
    return plan.name, stats


@dataclass(frozen=True)
class _Plan:
    """What is to be compared, and what the stage will be called."""

    name: str
    parent: Stage | None
    before: Weights
    after: Weights
    said: Mapping[str, Any]


def _plan(store: Store, index: Index, committed: Committed, details: Details) -> _Plan:
    parent = resolve(index, details.parent)
    if details.name is not None:
        check_new_name(index, details.name, "stage")
        name = details.name
    else:
        name = free_name(index, _plain_name(details.domain or "stage"))
        check_new_name(index, name, "stage")
    return _Plan(name, parent, store.weights(index, parent), _opened(store, index, parent, committed), _said(details))


def _opened(store: Store, index: Index, parent: Stage | None, committed: Committed) -> Weights:
    layer: Layer
    if isinstance(committed, Delta):
        layer = MemoryLayer(committed)
    elif isinstance(committed, DeltaFile):
        layer = FileLayer(committed)
    elif isinstance(committed, str | os.PathLike) and os.fspath(committed).endswith(SUFFIX):
        layer = FileLayer(DeltaFile(committed))
    else:
        return open_weights(committed)
    expected = fingerprint_of(index, parent)
    if digest_before(layer, store.weights(index, parent)) != expected:
        raise WrongBaseError(
            layer.description,
            expected=f"a delta that begins with {label(parent)!r}, weights {expected}",
            found="one that begins with others",
            fix="Name the stage that it begins with as the parent.",
        )
    return store.weights(index, parent, layer)


def _said(details: Details) -> dict[str, Any]:
    """Return what is said about the stage as JSON has it: tuples are lists then, keys are strings.

    Raises:
        HistoryError: It is no JSON.
    """
    try:
        return {
            "domain": None if details.domain is None else check_text(details.domain, "a domain"),
            "message": check_text(details.message, "a message"),
            "config": check_object(json.loads(json.dumps(dict(details.config))), "config"),
            "metrics": check_object(json.loads(json.dumps(dict(details.metrics))), "metrics"),
        }
    except (Malformed, TypeError, ValueError, RecursionError) as fault:
        fix = "Give plain values: texts, finite numbers, lists and objects."
        raise HistoryError("the new stage", expected="values for JSON", found=str(fault), fix=fix) from fault


def _check_changed(stats: DeltaStats, parent: Stage | None, details: Details) -> None:
    if stats.empty and not details.allow_empty:
        raise NothingToCommitError(
            "nothing to commit",
            expected=f"other weights than those of {label(parent)}",
            found="the same, bit for bit",
            fix="Note it all the same with --allow-empty (allow_empty=True), or commit other weights.",
        )


def _stage(store: Store, index: Index, plan: _Plan, details: Details, stats: DeltaStats, path: Path) -> Stage:
    layer = FileLayer(DeltaFile(path))
    before = fingerprint_of(index, plan.parent)
    if digest_before(layer, plan.before) != before:
        raise HistoryError(
            f"{label(plan.parent)!r}, the parent",
            expected=f"weights {before}",
            found="others: the base or a delta was changed since it was committed",
            fix="Run verify, and put back what it names.",
        )
    stage = Stage(
        id="",
        name=plan.name,
        parent=None if plan.parent is None else plan.parent.id,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        stats=_summary(stats),
        before=before,
        after=digest_after(store.weights(index, plan.parent, layer)),
        delta=record_of(store.folder, f"{DELTAS}/{path.name}"),
        **plan.said,
    )
    return Stage(**{**vars(stage), "id": stage_id(stage.to_dict())})


def _summary(stats: DeltaStats) -> dict[str, Any]:
    total = stats.total.to_dict()
    del total["steps"]
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in total.items()}
    return {
        **finite,
        "tensors": len(stats.tensors),
        "tensors_changed": sum(change.changed > 0 for change in stats.tensors.values()),
        "whole": len(stats.whole),
        "files": len(stats.files),
        "renamed": len(stats.renamed),
    }


@contextmanager
def _new_delta(folder: Path, file: str) -> Iterator[Path]:
    """Yield the path of a delta to write; it stays if the block ends without an exception.

    No index names it before the block ends, so that it may replace one that a killed commit left there.
    """
    path = folder / file
    try:
        if path.parent.is_symlink():
            raise OSError("a link")
        if not path.parent.is_dir():
            path.parent.mkdir()
            sync_folder(folder)
    except OSError as fault:
        fix = "Make it a folder that can be written."
        raise OutputError(str(path.parent), expected="a folder", found=str(fault), fix=fix) from fault
    try:
        yield path
    except BaseException:
        if file not in {stage.delta.file for stage in read_index(folder).stages}:  # an interrupt may come that late
            path.unlink(missing_ok=True)
        raise


def _number(index: Index) -> int:
    """Return the number of the next delta, after those of all stages."""
    numbers = [Path(stage.delta.file).name.partition("-")[0] for stage in index.stages]
    return 1 + max([0, *(int(number) for number in numbers if number.isdecimal())])


def _plain_name(text: str) -> str:
    """Return what is left of a domain's name, which may be a path, where only a name's characters may stand."""
    stem = Path(text).name.partition(".")[0]
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in stem)
    plain = plain.strip("-_")[:50]
    return plain if plain and plain not in ("HEAD", "base") else "stage"
