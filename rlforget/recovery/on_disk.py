"""Old bits in a checkpoint on disk, chosen and written range by range: neither its model nor its delta is held.

For the scores that ask nothing of a model, the controls: how far a coordinate moved, or chance. The threshold comes
from histograms over the delta's file, as `select_top` finds it; what it picks of a range shows when that passes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.file import DeltaFile
from rlforget.delta.file.memory import end_of
from rlforget.delta.in_place import write_composed
from rlforget.delta.layers import FileLayer
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.errors import CoordinateError, LayoutError, NonFiniteError, OutputError, WrongBaseError
from rlforget.recovery.norms import difference, norm_share, square
from rlforget.recovery.undo import RollbackReport
from rlforget.weights import Weights
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget_kernels.common.score_bits import INFINITY_BIN, LEADING_BINS, TRAILING_BINS
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.fingerprint import fingerprint_after_patch
from rlforget_kernels.select_top import threshold, trailing_histogram

Control = Literal["magnitude", "random"]
_Changes: TypeAlias = tuple[Tensor, Tensor, Tensor]  # flat indices, bits before, bits after


def rollback_on_disk(
    path: str | PathLike[str],
    delta: DeltaFile,
    out: str | PathLike[str] | None = None,
    *,
    score: Control,
    fraction: float,
    in_place: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> RollbackReport:
    """Put old bits back at the coordinates that score highest: what `rf.rollback` does of a model that is loaded.

    Memory follows neither the model nor the delta. What changed is read four times, the checkpoint once before that.

    Args:
        path: A checkpoint at the delta's after bits.
        delta: The later change.
        out: Where to write the new checkpoint.
        score: `magnitude`, abs(δ), or `random`; see `rf.conflict`.
        fraction: How many coordinates, as a share in (0, 1] of all.
        in_place: Change the checkpoint itself, as one transaction; see `rf.undo`.
        dry_run: Write nothing.
        seed: For `random`.
        force: Replace a checkpoint that is at `out`.
        progress: Told how many coordinates were written.

    Raises:
        CoordinateError: A fraction out of range.
        DeltaFileError: The file is damaged, or cannot lead back.
        LayoutError: It changes shapes, dtypes or names, or is for other tensors.
        NonFiniteError: A score is NaN or infinite; the message names the tensor.
        OutputError: Not exactly one of `out` and `in_place`, or it cannot be written.
        WrongBaseError: The checkpoint is not at the delta's after bits.
    """
    if not 0.0 < fraction <= 1.0:
        found = repr(fraction)
        raise CoordinateError("fraction", expected="a number in (0, 1]", found=found, fix="Write 2% as 0.02.")
    if (out is None) == (not in_place) and not dry_run:
        found = "both" if in_place else "neither"
        raise OutputError(str(path), expected="either out= or in_place=True", found=found, fix="Give one.")
    base = CheckpointWeights(Path(path))
    layer = PickedLayer(delta, base, score, seed)
    report = layer.pick(max(1, round(fraction * delta.numel)))
    weights = ComposedWeights(base, [layer])
    if dry_run:
        weights.verify()
    elif out is None:
        write_composed(weights, note=f"rollback of {delta.path} by {score}", progress=progress)
    else:
        weights.save(Path(out), force=force, progress=progress)
    return report


@dataclass(frozen=True)
class _Range:
    """What changed in a range of a tensor, as bits, and how it scores, as those of float32."""

    name: str
    dtype: torch.dtype
    indices: Tensor
    before: Tensor
    after: Tensor
    score_bits: Tensor
    histogram: Tensor


@dataclass
class _Picks:
    """What is picked: every score above a threshold, and in each tensor those that equal it before some index."""

    least: int = 0  # float32 bits
    ends: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, Fingerprint] = field(default_factory=dict)  # of the tensors afterwards
    counts: dict[str, int] = field(default_factory=dict)


class PickedLayer(FileLayer):
    """A delta backward, at the coordinates that score highest.

    Args:
        file: The delta.
        weights: At its after bits.
        score: How coordinates score.
        seed: For `random`.

    Raises:
        LayoutError: It changes shapes, dtypes or names, or is for other tensors.
        WrongBaseError: The weights are not at its after bits.
    """

    def __init__(self, file: DeltaFile, weights: Weights, score: Control, seed: int) -> None:
        if others := [*file.whole, *file.renamed]:
            raise LayoutError(
                f"{file.path}, tensor {others[0]!r}",
                expected="tensors that keep their names, shapes and dtypes",
                found=f"{len(others)} that do not",
                fix="Load the model, and roll it back there.",
            )
        super().__init__(file, backward=True)
        self._weights, self._score, self._seed = weights, score, seed
        self._in_weights = {name: _at_after(file, name, weights) for name, one in file.tensors.items() if one.changed}
        self._firsts: dict[str, dict[int, int]] = {}  # how many coordinates changed before each range of a tensor
        self._picks = _Picks()

    def pick(self, budget: int) -> RollbackReport:
        """Choose the coordinates, at most `budget` of them, none that scores 0; tell what their rollback does."""
        left = self._find_threshold(budget)
        picks, taken, whole = self._picks, 0.0, 0.0
        for name, entry in self._file.tensors.items():
            picks.lanes[name], picks.counts[name], picks.ends[name] = entry.fingerprint_after, 0, 0
        for one in self._ranges():
            equal = one.indices[one.score_bits == picks.least]
            some = min(left, equal.numel())
            if some:
                picks.ends[one.name], left = int(equal[some - 1]) + 1, left - some
            chosen = self._chosen(one)
            step = difference(one.after.view(one.dtype), one.before.view(one.dtype))
            whole, taken = whole + square(step.float()), taken + square(step[chosen])
            lanes = torch.tensor(picks.lanes[one.name])
            lanes = fingerprint_after_patch(lanes, one.indices[chosen], one.after[chosen], one.before[chosen])
            first, second = lanes.tolist()
            picks.lanes[one.name] = first, second
            picks.counts[one.name] += int(chosen.sum())
        count = sum(picks.counts.values())
        return RollbackReport(count, count, 1.0, norm_share(taken, whole))

    def _find_threshold(self, budget: int) -> int:
        """Find the score from which on coordinates are picked; return how many of those that equal it are."""
        leading, nonzero = torch.zeros(LEADING_BINS, dtype=torch.int64), 0
        for one in self._ranges():
            if int(one.histogram[INFINITY_BIN:].sum()):
                raise NonFiniteError(
                    f"the score {self._score!r} of {one.name!r}",
                    expected="finite numbers",
                    found="NaN or Inf",
                    fix="Look for NaN or Inf in the weights on either side of the delta.",
                )
            leading += one.histogram
            nonzero += int(torch.count_nonzero(one.score_bits))
        wanted = min(budget, nonzero)
        if not wanted:
            return 0
        high, rest = threshold(leading, wanted)
        trailing = torch.zeros(TRAILING_BINS, dtype=torch.int64)
        for some in self._many_scores():
            trailing += trailing_histogram(some, high)
        low, ties = threshold(trailing, rest)
        self._picks.least = high << 19 | low
        return ties

    def changed(self, name: str) -> bool:
        """Whether any coordinate was picked."""
        return self._picks.counts.get(self._own(name), 0) > 0

    def lanes(self, name: str) -> tuple[Fingerprint | None, Fingerprint | None]:
        """Return the fingerprints before and after the rollback."""
        return self._file.tensors[self._own(name)].fingerprint_after, self._picks.lanes[self._own(name)]

    def change_(self, name: str, start: int, stop: int, bits: Tensor) -> None:
        """Put old bits back where they were picked."""
        one = self._scored(name, start, self._changes(name, start, stop, bits))
        chosen = self._chosen(one)
        bits[one.indices[chosen].long() - start] = one.before[chosen]

    def file_sizes(self) -> dict[str, tuple[int | None, int | None]]:
        """Return nothing: files that are no weights stay."""
        return {}

    def _chosen(self, one: _Range) -> Tensor:
        above, equal = one.score_bits > self._picks.least, one.score_bits == self._picks.least
        return above | (equal & (one.indices < self._picks.ends[one.name]))

    def _ranges(self) -> Iterator[_Range]:
        """Yield what changed, in order; threads read the weights and the delta ahead."""
        ranges = [
            (name, start, stop)
            for name, entry in self._file.tensors.items()
            for start, stop in (self._file.changed_ranges(name) if entry.changed else ())
        ]
        count = 0
        for (name, start, _), changes in zip(ranges, map_ahead(lambda one: self._read(*one), ranges), strict=True):
            self._firsts.setdefault(name, {0: count})[start] = count
            count += changes[0].numel()
            yield self._scored(name, start, changes)

    def _many_scores(self) -> Iterator[list[Tensor]]:
        """Yield the scores of so many ranges together that a histogram of half a million bins is small beside them."""
        scores: list[Tensor] = []
        for one in self._ranges():
            scores.append(one.score_bits.view(torch.float32))
            if sum(some.numel() for some in scores) >= TRAILING_BINS:
                yield scores
                scores = []
        if scores:
            yield scores

    def _read(self, name: str, start: int, stop: int) -> _Changes:
        return self._changes(name, start, stop, self._weights.bits(self._in_weights[name], start, stop))

    def _changes(self, name: str, start: int, stop: int, bits: Tensor) -> _Changes:
        return self._file.patch(name, start, stop).changes(bits, backward=True)

    def _scored(self, name: str, start: int, changes: _Changes) -> _Range:
        indices, before, after = changes
        dtype = self._file.tensors[name].dtype
        values = difference(after.view(dtype), before.view(dtype)).float()
        scores, histogram = conflict_score(values, self._score, seed=self._seed, offset=self._before(name, start))
        bits_of_scores = (scores + 0.0).view(torch.int32)  # -0.0 counts as 0
        return _Range(name, dtype, indices, before, after, bits_of_scores, histogram)

    def _before(self, name: str, start: int) -> int:
        """Return how many coordinates changed before a place, in the tensors before and in this one."""
        known = self._firsts.get(name, {0: 0})
        near = max(place for place in known if place <= start)
        between = self._file.patch(name, near, start).indices.numel() if near < start else 0
        return known[near] + between


def _at_after(file: DeltaFile, name: str, weights: Weights) -> str:
    """Return what the weights call a tensor, which has to hold the delta's after bits."""
    end = end_of(file, file.tensors[name], weights)
    if not end.backward:
        raise WrongBaseError(
            f"{weights.description}, tensor {end.name!r}",
            expected=f"the bits that {file.path} leads to",
            found="those that it begins with, told by their fingerprint",
            fix="Take the weights that the delta leads to: apply the delta, or undo what was rolled back already.",
        )
    return end.name
