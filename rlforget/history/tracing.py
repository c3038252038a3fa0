"""Following a tensor through the stages: what each one changed, and what of it had been there before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlforget.counting import telling
from rlforget.delta.composed import BASE, ComposedWeights
from rlforget.delta.scan import PIECE
from rlforget.history.blame import Blame, BlameSummary, Count, Moment, add, named, ravelled
from rlforget.history.stage import Stage
from rlforget.weights.ahead import Progress, map_ahead
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.sparse_delta import sparse_delta

_BYTES = 48 << 20  # of the changes that are held at a time
_INDEX_BYTES = 4
_FEWEST = 1 << 16  # coordinates of a range


def blame(weights: ComposedWeights, stages: Sequence[Stage], name: str) -> Blame:
    """Find who changed each coordinate of a tensor; see `History.blame`.

    Args:
        weights: The weights of the last one of `stages`, composed of the base and a layer for each of them.
        stages: The oldest first.
        name: A tensor of `weights`.
    """
    name = named(weights, stages, name)
    meta, born = weights.meta(name), weights.steps(name)[0].number
    last = torch.full((meta.numel,), born, dtype=torch.int32)
    changes = torch.full_like(last, 0 if born == BASE else 1)
    returns = torch.zeros_like(last)
    for start, stop in _ranges(weights, name):
        moved = _moved(weights, name, start, stop)
        at = moved.indices + start
        last[at] = moved.last
        changes[at] += moved.times
        returns[at] = moved.returns
    return Blame(name, meta.dtype, tuple(stages), *(one.view(meta.shape) for one in (last, changes, returns)))


def summarise(weights: ComposedWeights, stages: Sequence[Stage], progress: Progress | None = None) -> BlameSummary:
    """Count who changed how much, in bounded memory; see `History.blame_summary`."""
    parts = [(name, start, stop) for name in weights.names() for start, stop in _ranges(weights, name)]
    progress = progress or telling("coordinates")
    total, done = sum(stop - start for _, start, stop in parts), 0
    counts: dict[str, list[Count]] = {name: [] for name in weights.names()}
    found_in_order = map_ahead(lambda part: _count(weights, stages, *part), parts)
    for (name, start, stop), found in zip(parts, found_in_order, strict=True):
        counts[name].append(found)
        done += stop - start
        if progress is not None:
            progress(done, total)
    return BlameSummary(tuple(stages), {name: add(len(stages), found) for name, found in counts.items()})


def biography(weights: ComposedWeights, stages: Sequence[Stage], name: str, at: Sequence[int]) -> list[Moment]:
    """Return one coordinate's value at each stage; see `History.biography`."""
    name = named(weights, stages, name)
    meta = weights.meta(name)
    flat = ravelled(name, at, meta)
    bits = torch.empty(1, dtype=bits_dtype(meta.dtype))
    made = {step.number: int(bits) for step in weights.making(name, flat, flat + 1, bits)}
    first = min(made)
    moments: list[Moment] = []
    seen: set[int] = set()
    held = None
    for number in range(first, len(stages)):
        now = made[number] if held is None else made.get(number, held)
        bits[0] = now
        value = bits.clone().view(meta.dtype)[0]
        stage = None if number == BASE else stages[number]
        moments.append(Moment(stage, value, now != held and stage is not None, now != held and now in seen))
        seen.add(now)
        held = now
    return moments


class _Moved(NamedTuple):
    """What moved in a range after its beginning: 1-D, a value for each coordinate that any stage changed.

    Attributes:
        indices: Its place in the range, ascending. int64.
        last: The number of the stage that changed it last. int32.
        times: How many stages changed it. int32.
        returns: How many of them brought back earlier bits. int32.
    """

    indices: Tensor
    last: Tensor
    times: Tensor
    returns: Tensor


def _count(weights: ComposedWeights, stages: Sequence[Stage], name: str, start: int, stop: int) -> Count:
    moved = _moved(weights, name, start, stop)
    born, numel, touched = weights.steps(name)[0].number, stop - start, moved.indices.numel()
    last = torch.bincount(moved.last + 1, minlength=len(stages) + 1).tolist()
    last[born + 1] += numel - touched
    whole = 0 if born == BASE else numel
    times = int(moved.times.sum(dtype=torch.int64))
    return Count(numel, tuple(last), whole or touched, whole + times, int(moved.returns.sum(dtype=torch.int64)))


def _ranges(weights: ComposedWeights, name: str) -> Iterator[tuple[int, int]]:
    """Cut a tensor into ranges, aligned to frames, whose changes fit in memory even where each stage changed all."""
    meta, room = weights.meta(name), PIECE
    while room > _FEWEST and room * len(weights.steps(name)) * (_INDEX_BYTES + 2 * meta.dtype.itemsize) > _BYTES:
        room //= 2
    yield from ((start, min(start + room, meta.numel)) for start in range(0, meta.numel, room))


def _moved(weights: ComposedWeights, name: str, start: int, stop: int) -> _Moved:
    """Find what moved in a range of a tensor, and how often it moved to bits that it had before."""
    last = torch.zeros(stop - start, dtype=torch.int32)
    times = torch.zeros_like(last)
    moves: list[tuple[Tensor, Tensor, Tensor]] = []
    if len(weights.steps(name)) > 1:
        bits = torch.empty(stop - start, dtype=bits_dtype(weights.meta(name).dtype))
        held = torch.empty_like(bits)
        for step in weights.making(name, start, stop, bits):
            if moves or step != weights.steps(name)[0]:
                indices, old, new = sparse_delta(held, bits)
                last[indices] = step.number
                times[indices] += 1
                moves.append((indices, old, new))
            held.copy_(bits)
    touched = times.nonzero().flatten()
    returns = torch.zeros_like(last)
    again = (times > 1).nonzero().flatten()  # bits come back only where there was more than one change
    if again.numel():
        returns[again] = times[again] + 1 - _different(moves, again, stop - start)
    return _Moved(touched, last[touched], times[touched], returns[touched])


def _different(moves: Sequence[tuple[Tensor, Tensor, Tensor]], some: Tensor, length: int) -> Tensor:
    """Return how many different bits some coordinates of a range had, before and after its changes. int32."""
    place = torch.full((length,), -1, dtype=torch.int32)
    place[some] = torch.arange(len(some), dtype=torch.int32)
    rows = torch.empty((len(moves) + 1, len(some)), dtype=moves[0][1].dtype)
    for indices, old, _ in reversed(moves):  # so that the first change of each has the last word
        column = place[indices]
        rows[0, column[column >= 0]] = old[column >= 0]
    for row, (indices, _, new) in enumerate(moves, start=1):
        rows[row] = rows[row - 1]
        column = place[indices]
        rows[row, column[column >= 0]] = new[column >= 0]
    rows.numpy().sort(axis=0)  # in place; torch's sort would make indices of four times the size
    return 1 + (rows[1:] != rows[:-1]).sum(dim=0, dtype=torch.int32)
