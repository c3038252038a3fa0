"""Reading a whole history again: is the base what it was, and do the deltas lead to the weights that were committed?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rlforget.delta.composed import BASE, ComposedWeights, Step
from rlforget.delta.scan import PIECE, added
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.errors import HistoryError, RlforgetError
from rlforget.history.beginning import file_checksums
from rlforget.history.files import check_delta_bytes
from rlforget.history.index import Index
from rlforget.history.references import label
from rlforget.history.stage import Stage, lineage
from rlforget.history.store import Store, fingerprint_of
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.digest import digest
from rlforget.weights.split import from_parts, stretch, takes
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.fingerprint import fingerprint

T = TypeVar("T")

_Key = tuple[str | None, str]
"""A tensor as a stage made it: the stage's id (None: the base) and what it called the tensor before."""


@dataclass(frozen=True)
class Verification:
    """What `History.verify` found.

    Attributes:
        faults: {`base` or a stage's name: what is wrong with it}; for each the first thing found.
        checked: `base` and every stage's name, in the order in which they were committed.
    """

    faults: Mapping[str, str]
    checked: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"sound": self.sound, "faults": dict(self.faults), "checked": list(self.checked)}


def verify(store: Store, index: Index, progress: Progress | None = None) -> Verification:
    """Read everything again; see `History.verify`. Ranks may split the work; see `rlforget.weights.split`.

    A tensor is composed once for each branch, and fingerprinted on the way at each stage: the newest stages come first,
    and those before them find theirs already known.
    """
    faults: dict[str, str] = {}
    for number, stage in enumerate(index.stages):
        if takes(number):
            with _noted(faults, stage.name):
                check_delta_bytes(store.folder, stage)
    faults = {name: fault for told in from_parts(faults) for name, fault in told.items()}
    known: dict[_Key, Fingerprint] = {}
    everyone = [*reversed(index.stages), None]
    for done, one in enumerate(everyone, start=1):
        if faults.keys().isdisjoint(stage.name for stage in lineage(index.by_id, one)):
            with _noted(faults, label(one)):
                _check_weights(store, index, one, known)
        if progress is not None:
            progress(done, len(everyone))
    with _noted(faults, "base"):
        _check_files(store, index)
    for told in from_parts(faults):
        faults = told | faults
    for stage in index.stages:
        before = next((one.name for one in lineage(index.by_id, stage) if one.name in faults), None)
        if before is not None:
            faults.setdefault(stage.name, f"it came from {before!r}, which is at fault")
    order = ("base", *(stage.name for stage in index.stages))
    return Verification({name: faults[name] for name in order if name in faults}, order)


def _check_weights(store: Store, index: Index, stage: Stage | None, known: dict[_Key, Fingerprint]) -> None:
    """Check that a stage's weights, composed, have the digest that the index has of them."""
    ids = [one.id for one in reversed(list(lineage(index.by_id, stage)))]
    opened: list[ComposedWeights] = []

    def read() -> dict[_Key, Fingerprint]:
        opened.append(store.weights(index, stage))
        return _lanes(opened[0], ids, known)

    made: dict[_Key, Fingerprint] = {}
    for told in _of_all(read):
        made |= {key: added(made.get(key, (0, 0)), lanes) for key, lanes in told.items()}
    known.update(made)
    (weights,) = opened
    ends = {name: known.get(_key(ids, weights.steps(name)[-1]), (0, 0)) for name in weights.names()}
    composed = digest({name: (weights.meta(name), ends[name]) for name in weights.names()})
    if composed != fingerprint_of(index, stage):
        raise HistoryError(
            label(stage),
            expected=f"weights {fingerprint_of(index, stage)}",
            found=composed,
            fix="Take the base and the deltas from a copy of the history.",
        )


def _lanes(weights: ComposedWeights, ids: list[str], known: Mapping[_Key, Fingerprint]) -> dict[_Key, Fingerprint]:
    """Compose what is not known yet, and return the fingerprints on the way; where ranks split it, a part of each."""
    maker: dict[_Key, str] = {}  # tensors that were one before they were untied have steps in common
    for name in weights.names():
        if _key(ids, weights.steps(name)[-1]) not in known:
            for step in weights.steps(name):
                maker.setdefault(_key(ids, step), name)
    ranges = list(_ranges(weights, dict.fromkeys(maker.values())))
    own = ranges[stretch([(stop - start) * weights.meta(name).dtype.itemsize for name, start, stop in ranges])]
    made: dict[_Key, Fingerprint] = {}  # what other branches know already is made once more on the way
    for (name, _, _), found in zip(own, map_ahead(lambda one: _made(weights, *one), own), strict=True):
        for step, lanes in found:
            key = _key(ids, step)
            if maker[key] == name:
                made[key] = added(made.get(key, (0, 0)), lanes)
    return made


def _of_all(read: Callable[[], T]) -> list[T]:
    """Return what all ranks read; raise, on each of them, the first fault that one met."""
    found: list[T] = []
    fault = ""
    try:
        found.append(read())
    except (RlforgetError, OSError) as met:
        fault = str(met)
    told = from_parts((found, fault))
    for _, fault in told:
        if fault:
            raise _MetElsewhere(fault)
    return [one for several, _ in told for one in several]


class _MetElsewhere(Exception):
    """A fault that a rank met, by its message."""


def _check_files(store: Store, index: Index) -> None:
    """Check that the files that go along with the base are what they were."""
    found = file_checksums(store.base(index).files())
    changed = sorted(name for name, _ in found.items() ^ index.base.files.items())
    if changed:
        raise HistoryError(
            "files beside the base's weights",
            expected="those that were there when the history began",
            found=f"others: {', '.join(dict.fromkeys(changed))}",
            fix="Put them back, or run init on this history to take them as they are.",
        )


def _ranges(weights: ComposedWeights, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for name in names:
        numel = weights.meta(name).numel
        yield from ((name, start, min(start + PIECE, numel)) for start in range(0, numel, PIECE))


def _made(weights: ComposedWeights, name: str, start: int, stop: int) -> list[tuple[Step, Fingerprint]]:
    """Compose a range, and return what it adds to the tensor's fingerprint after each step."""
    bits = torch.empty(stop - start, dtype=bits_dtype(weights.meta(name).dtype))
    found = []
    for step in weights.making(name, start, stop, bits):
        first, second = fingerprint(bits, start).tolist()
        found.append((step, (first, second)))
    return found


def _key(ids: list[str], step: Step) -> _Key:
    return (None if step.number == BASE else ids[step.number]), step.name


@contextmanager
def _noted(faults: dict[str, str], name: str) -> Iterator[None]:
    """Take down what goes wrong inside the block as the fault of `name`, unless it has one already."""
    try:
        yield
    except (RlforgetError, OSError, _MetElsewhere) as fault:
        faults.setdefault(name, str(fault))
