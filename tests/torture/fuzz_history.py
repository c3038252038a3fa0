"""Damaged histories: each gives a named error or a correct result.

One to three things in a sound history are changed: a value of the index, its text, a delta, the base, what kind of
file one of them is. Half of the time the stages' ids, and the checksums of altered deltas, are made to fit again, so
that the change reaches the code behind them. Then every way to read it is tried, and a commit. Told apart:

    refused    an error of rlforget.errors wherever the change matters
    read       stages whose ids are the old ones hold the old weights, the others what their records say

It fails, too, where a file outside of the history is opened or changed.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlforget.errors import RlforgetError
from rlforget.history import History
from rlforget.history.stage import Stage
from rlforget.weights.digest import weights_digest
from tests.delta.random_weights import Tensors, same_bits, write_checkpoint
from tests.torture.damaged_histories import CHANGES, damaged
from tests.torture.fuzzing import Target, Wrong


@dataclass(frozen=True)
class Truth:
    """What the sound history holds: weights by the ids of its stages; None is the base."""

    weights: dict[str | None, Tensors]
    new: Tensors


def judge(folder: Path, truth: Truth, rng: random.Random) -> str:
    """Try every way to read a history, and to commit. Returns "read" if anything was read, else "refused"."""
    try:
        history = History.open(folder)
    except RlforgetError:
        return "refused"
    outcome = "refused"
    history.log(), history.graph(), repr(history), history.tags
    stages: list[Stage | None] = [None, *history.stages]
    for stage in stages:
        try:
            history.checkout(stage, folder.parent / "out", dry_run=True)
            weights = history.weights(stage)
            history.blame_summary(stage)
            _check_is(history, stage, truth)
        except RlforgetError:
            continue
        outcome = "read"
        expected = history.base.fingerprint if stage is None else stage.after
        if weights_digest(weights) != expected:
            raise Wrong(f"{stage}: weights that are not those of the record")
    history.verify()
    try:
        committed = history.commit(truth.new, name=f"new-{rng.randrange(10)}", wait=0)
    except RlforgetError:
        pass
    else:
        _check_same(history, committed, truth.new)
    with suppress(RlforgetError):
        history.gc(wait=0)
    return outcome


def _check_is(history: History, stage: Stage | None, truth: Truth) -> None:
    """Check that a stage whose id is an old one holds the old weights; of the base, whose fingerprint it is."""
    key = None if stage is None else stage.id
    if key in truth.weights and (key is not None or history.base.fingerprint == weights_digest(history.weights(None))):
        known = truth.weights[key]
        if key is None and set(history.weights(None).names()) != set(known):
            return  # another base, whose fingerprint the index was made to have
        if key is not None:
            _check_same(history, stage, known)


def _check_same(history: History, stage: Stage | None, known: Tensors) -> None:
    weights = history.weights(stage)
    if set(weights.names()) != set(known) or not all(same_bits(weights.tensor(n), t) for n, t in known.items()):
        raise Wrong(f"{stage}: other weights than were committed")


class Watch:
    """Notes what this process opens or changes in a folder that is none of a history's business."""

    def __init__(self) -> None:
        self._on = False
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("open", "os.remove", "os.rename", "os.truncate", "os.rmdir"):
            path = arguments[0]
            if isinstance(path, str) and "outside" in path.split("/"):
                self._seen.append(f"{event} {path}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Raise at the end of the block if it reached there."""
        self._on, self._seen = True, []
        try:
            yield
        finally:
            self._on = False
        if self._seen:
            raise Wrong(f"outside of the history: {self._seen[0]}")


def _states() -> list[Tensors]:
    flat = torch.arange(60.0)
    base: Tensors = {"model.layers.0.w": flat.reshape(6, 10).bfloat16(), "v": torch.arange(9, dtype=torch.int8)}
    a = {**base, "model.layers.0.w": (flat + (flat % 7 == 0)).reshape(6, 10).bfloat16()}
    b = {**a, "v": torch.arange(12, dtype=torch.int8)}
    c = {**a, "more": torch.ones(3).half()}
    return [base, a, b, c, {**base, "v": torch.zeros(9, dtype=torch.int8)}]


def prepared(root: Path) -> tuple[Path, Truth]:
    """Make the sound history base → a → b, c on a; and beside it something that is none of its business."""
    base, a, b, c, new = _states()
    history = History.init(root / "sound", write_checkpoint(root / "written", base, 0), copy=True)
    first = history.commit(a, name="a", domain="math", config={"steps": 60}, metrics={"math": 0.5})
    second = history.commit(b, name="b")
    third = history.commit(c, name="c", parent="a")
    history.tag("best", "b")
    (root / "outside").mkdir()
    shutil.copy(history.folder / second.delta.file, root / "outside" / "x.delta.safetensors")
    write_checkpoint(root / "elsewhere", base, 0)  # a base may be anywhere
    return history.folder, Truth({None: base, first.id: a, second.id: b, third.id: c}, new)


class Histories(Target):
    """A history of three stages, and beside it something that is none of its business."""

    changes = tuple(CHANGES)

    def __init__(self, folder: Path) -> None:
        self._sound, self._truth = prepared(folder)
        self._folder, self._outside = folder / "history", folder / "outside"
        self._watch, self._listing = Watch(), _listing(self._outside)
        shutil.copytree(self._sound, self._folder)
        assert self.judge(random.Random(0)) == "read"

    def damage(self, rng: random.Random) -> list[str]:
        """Make one more damaged history."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._sound, self._folder)
        return damaged(self._folder, rng)

    def judge(self, rng: random.Random) -> str:
        """Read it in every way."""
        with self._watch.watching():
            outcome = judge(self._folder, self._truth, rng)
        if _listing(self._outside) != self._listing:
            raise Wrong("what is outside of the history changed")
        return outcome


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*"))}
