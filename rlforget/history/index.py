"""The index of a history, `history.json`: what it says, read strictly, and written whole.

    {"format": "rlforget.history", "version": 1,
     "base": {"path": "../base", "copied": false, "fingerprint": "32 hex digits", "files": {"config.json": "sha256"}},
     "tags": {"best": "id of a stage"},
     "stages": [{"id": "64 hex digits", "name": ..., "parent": ..., ...}, ...]}

Stages stand in the order in which they were committed, so a parent before its children. Whoever writes the index holds
the history's lock; whoever reads it needs none, because it changes by one rename.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from rlforget.errors import HistoryError
from rlforget.history.schema import Malformed, base_record, check_name, field_of, only_keys, stage_record
from rlforget.history.stage import Stage
from rlforget.weights.atomic import new_file

INDEX = "history.json"
DELTAS = "deltas"
COPIED_BASE = "base"
FORMAT = "rlforget.history"
VERSION = 1

_LARGEST = 256 << 20  # bytes of an index: beyond any history, and below what would exhaust a machine


@dataclass(frozen=True)
class Base:
    """The weights that a history begins with.

    Attributes:
        path: Where they are, relative to the history's folder, with slashes.
        copied: Whether they are the history's own copy, in `base`.
        fingerprint: Digest of the weights (`rlforget.weights.digest`).
        files: SHA-256 of each file that goes along with them, by name.
    """

    path: str
    copied: bool
    fingerprint: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Index:
    """What `history.json` says.

    Attributes:
        base: The weights it begins with.
        stages: In the order in which they were committed.
        tags: Names given to stages later on: {tag: id}.
    """

    base: Base
    stages: tuple[Stage, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, Stage]:
        """The stages by id."""
        return {stage.id: stage for stage in self.stages}

    @property
    def head(self) -> Stage | None:
        """The stage that was committed last; None: there is only the base."""
        return self.stages[-1] if self.stages else None

    def names(self) -> set[str]:
        """Return every name that is taken: those of the stages and the tags."""
        return {*(stage.name for stage in self.stages), *self.tags}

    def tags_of(self, stage: Stage) -> list[str]:
        """Return a stage's tags, sorted."""
        return sorted(tag for tag, target in self.tags.items() if target == stage.id)

    def children(self, stage: Stage | None) -> list[Stage]:
        """Return the stages that were committed on a stage, or on the base."""
        parent = None if stage is None else stage.id
        return [child for child in self.stages if child.parent == parent]

    def with_stage(self, stage: Stage) -> Index:
        """Return the index after a commit."""
        return replace(self, stages=(*self.stages, stage))

    def without(self, dropped: Iterable[Stage]) -> Index:
        """Return the index without some stages."""
        gone = {stage.id for stage in dropped}
        return replace(self, stages=tuple(stage for stage in self.stages if stage.id not in gone))


def is_history(folder: Path) -> bool:
    """Whether a folder is a history: whether it has an index, sound or not."""
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> Index:
    """Read the index of a history and check all of it: names, ids, parents, file names.

    Raises:
        HistoryError: There is none, or it is damaged, forged or of another version.
    """
    path = folder / INDEX
    try:
        return _parse(_load(_text(path)))
    except (Malformed, OSError, ValueError, RecursionError) as fault:
        if isinstance(fault, FileNotFoundError | NotADirectoryError):
            raise HistoryError(
                str(folder),
                expected="the folder of a history",
                found=f"no {INDEX} in it",
                fix="Check the path, or begin one there with `rlforget init BASE`.",
            ) from fault
        found = str(fault) if isinstance(fault, Malformed) else f"{type(fault).__name__}: {fault}"
        fix = "Take a copy of it that is whole; deltas and base are read only through it."
        raise HistoryError(
            str(path), expected=f"a {FORMAT} index of version {VERSION}", found=found, fix=fix
        ) from fault


def write_index(folder: Path, index: Index) -> None:
    """Replace the index of a history, whole or not at all; the caller holds the lock.

    Raises:
        OutputError: It cannot be written.
        HistoryError: It would not be read again; nothing is written then.
    """
    text = json.dumps(_plain(index), indent=1, allow_nan=False) + "\n"
    try:
        _parse(_load(text.encode("ascii")))
    except Malformed as fault:
        raise HistoryError(
            str(folder / INDEX), expected="an index that can be read again", found=str(fault), fix="Give other values."
        ) from fault
    with new_file(folder / INDEX, force=True) as file:
        file.write(text.encode("ascii"))


def _text(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            raise Malformed(f"no plain file of at most {_LARGEST >> 20} MiB")
        return file.read()


def _load(text: bytes) -> Any:
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("a key that stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"the number {name}, which JSON does not have")


def _parse(raw: Any) -> Index:
    if not isinstance(raw, dict):
        raise Malformed("no JSON object")
    if raw.get("format") != FORMAT or field_of(raw, "version", int) != VERSION:
        raise Malformed(f"format {raw.get('format')!r:.60} of version {raw.get('version')!r:.60}")
    only_keys(raw, "the index", {"format", "version", "base", "tags", "stages"})
    base = Base(**base_record(field_of(raw, "base", dict), COPIED_BASE))
    stages: dict[str, Stage] = {}
    names: set[str] = set()
    for record in field_of(raw, "stages", list):
        stage = stage_record(record, DELTAS)
        _check_place(stage, stages, names, base)
        stages[stage.id] = stage
        names.add(stage.name)
    tags = field_of(raw, "tags", dict)
    for tag, target in tags.items():
        check_name(tag)
        if tag in names:
            raise Malformed(f"{tag!r} as the name of a stage and of a tag")
        if not isinstance(target, str) or target not in stages:
            raise Malformed(f"a tag {tag!r} of no stage")
    files = [stage.delta.file.lower() for stage in stages.values()]
    if len(set(files)) < len(files):
        raise Malformed("a delta file that two stages share")
    return Index(base, tuple(stages.values()), tags)


def _check_place(stage: Stage, earlier: Mapping[str, Stage], names: set[str], base: Base) -> None:
    """Check a stage against those before it: its parent is there, has its weights, and nobody has its name or id."""
    if stage.parent is not None and stage.parent not in earlier:
        raise Malformed(f"stage {stage.name!r} before its parent, or without it")
    before = base.fingerprint if stage.parent is None else earlier[stage.parent].after
    if stage.before != before:
        raise Malformed(f"stage {stage.name!r}, which begins with other weights than its parent's")
    if stage.id in earlier or stage.name in names:
        raise Malformed(f"two stages {stage.name!r}")


def _plain(index: Index) -> dict[str, Any]:
    base = index.base
    return {
        "format": FORMAT,
        "version": VERSION,
        "base": {
            "path": base.path,
            "copied": base.copied,
            "fingerprint": base.fingerprint,
            "files": dict(base.files),
        },
        "tags": dict(index.tags),
        "stages": [stage.to_dict() for stage in index.stages],
    }
