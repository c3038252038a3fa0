"""Indexes without files, for what only the index decides; and small weights, for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlforget.history.index import Base, Index, write_index
from rlforget.history.stage import DeltaRecord, Stage, stage_id


def digest(number: int) -> str:
    return f"{number:032x}"


BASE = Base("../base", copied=False, fingerprint=digest(0), files={})


def made_stage(number: int, name: str, parent: Stage | None, **changes: Any) -> Stage:
    """A stage of its own name and weights, number `number` of its history."""
    record: dict[str, Any] = {
        "name": name,
        "parent": None if parent is None else parent.id,
        "domain": "math",
        "message": f"train {name}",
        "time": "2026-01-02T03:04:05Z",
        "config": {"steps": 60},
        "metrics": {"math": 0.5},
        "stats": {"numel": 100, "changed": 3},
        "before": digest(0) if parent is None else parent.after,
        "after": digest(number),
        "delta": {"file": f"deltas/{number:04d}.delta.safetensors", "size": 1, "sha256": "0" * 64},
        **changes,
    }
    delta = DeltaRecord(**record.pop("delta"))
    stage = Stage(id="", **record, delta=delta)
    return Stage(**{**vars(stage), "id": stage_id(stage.to_dict())})


def made_index(parents: Mapping[str, str | None], tags: Mapping[str, str] | None = None) -> Index:
    """An index of stages by name, each with the name of its parent; tags by the name of their stage."""
    stages: dict[str, Stage] = {}
    for number, (name, parent) in enumerate(parents.items(), start=1):
        stages[name] = made_stage(number, name, None if parent is None else stages[parent])
    return Index(BASE, tuple(stages.values()), {tag: stages[name].id for tag, name in (tags or {}).items()})


def write_made(folder: Path, index: Index) -> Path:
    folder.mkdir(exist_ok=True)
    write_index(folder, index)
    return folder


def edited(folder: Path, edit: Any) -> None:
    """Let `edit` change the raw index of a history."""
    path = folder / "history.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
