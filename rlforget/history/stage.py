"""A stage as the history records it, and the id that its record spells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SHORT = 8  # hexadecimal digits of an id that people are shown


@dataclass(frozen=True)
class DeltaRecord:
    """The file that holds a stage's change to its parent.

    Attributes:
        file: Its path inside the history, `deltas/NAME`.
        size: Its bytes.
        sha256: Of all of them, in hexadecimal.
    """

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Stage:
    """One stage of a history.

    Attributes:
        id: SHA-256, in hexadecimal, of the canonical JSON of everything below (`stage_id`): the parent's id and the
            delta's checksum are in it, so an id vouches for all that led to its stage.
        name: Unique in its history, by default the domain's.
        parent: The parent's id; None: the base.
        domain: The skill that was trained, where one was named.
        message: What was done, in the words of whoever committed it.
        time: When it was committed, in UTC, `YYYY-MM-DDTHH:MM:SSZ`.
        config: The training configuration, a JSON object.
        metrics: What was measured, a JSON object.
        stats: How much changed since the parent: counts, shares and norms over all tensors.
        before: Digest of the parent's weights (`rlforget.weights.digest`).
        after: Digest of the stage's weights.
        delta: Where the change is.
    """

    id: str
    name: str
    parent: str | None
    domain: str | None
    message: str
    time: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    stats: Mapping[str, Any]
    before: str
    after: str
    delta: DeltaRecord

    @property
    def short(self) -> str:
        """The first digits of the id."""
        return self.id[:SHORT]

    @property
    def title(self) -> str:
        """The first line of the message; the name where there is none."""
        return next(iter(self.message.splitlines()), "") or self.name

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, {self.short}, parent {'base' if self.parent is None else self.parent[:SHORT]})"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, as it stands in the index."""
        return {"id": self.id, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parent": self.parent,
            "domain": self.domain,
            "message": self.message,
            "time": self.time,
            "config": dict(self.config),
            "metrics": dict(self.metrics),
            "stats": dict(self.stats),
            "before": self.before,
            "after": self.after,
            "delta": {"file": self.delta.file, "size": self.delta.size, "sha256": self.delta.sha256},
        }


def stage_id(record: Mapping[str, Any]) -> str:
    """Return the id that a stage's record has: the SHA-256 of its canonical JSON, `id` left out.

    Canonical JSON is ASCII with sorted keys and no spaces: `json.dumps(..., sort_keys=True, separators=(",", ":"))`.
    """
    content = {key: value for key, value in record.items() if key != "id"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def lineage(stages: Mapping[str, Stage], stage: Stage | None) -> Iterator[Stage]:
    """Yield a stage, its parent, and so on up to the first after the base.

    Args:
        stages: The history's stages by id.
        stage: Where to begin; None, the base, has nothing before it.
    """
    while stage is not None:
        yield stage
        stage = None if stage.parent is None else stages[stage.parent]
