"""Following a tensor through the stages: what each one changed, and what of it had been there before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlforget.delta.composed import BASE, ComposedWeights
from rlforget.delta.scan import PIECE
from rlforget.history.blame import Blame, BlameSummary, Count, Moment, add, count, ravelled
from rlforget.history.stage import Stage
from rlforget.weights.ahead import Progress, map_ahead
from rlforget_kernels.common.bits import bits_dtype

_BYTES = 64 << 20  # of the bits that are compared with each other at a time


def blame(weights: ComposedWeights, stages: Sequence[Stage], name: str) -> Blame:
    """Find who changed each coordinate of a tensor; see `History.blame`.

    Args:
        weights: The weights of the last one of `stages`, composed of the base and a layer for each of them.
        stages: The oldest first.
        name: A tensor of `weights`.
    """
    name = weights.canonical(name)
    meta = weights.meta(name)
    found = _Part(*(torch.empty(meta.numel, dtype=torch.int32) for _ in range(3)))
    for start, stop in _ranges(meta.numel):
        for whole, part in zip(found, _part(weights, name, start, stop), strict=True):
            whole[start:stop] = part
    return Blame(name, meta.dtype, tuple(stages), *(one.view(meta.shape) for one in found))


def summarise(weights: ComposedWeights, stages: Sequence[Stage], progress: Progress | None = None) -> BlameSummary:
    """Count who changed how much, in bounded memory; see `History.blame_summary`."""
    parts = [(name, start, stop) for name in weights.names() for start, stop in _ranges(weights.meta(name).numel)]

    def read(part: tuple[str, int, int]) -> Count:
        return count(len(stages), *_part(weights, *part))

    counts: dict[str, list[Count]] = {name: [] for name in weights.names()}
    total, done = sum(stop - start for _, start, stop in parts), 0
    for (name, start, stop), found in zip(parts, map_ahead(read, parts), strict=True):
        counts[name].append(found)
        done += stop - start
        if progress is not None:
            progress(done, total)
    return BlameSummary(tuple(stages), {name: add(len(stages), found) for name, found in counts.items()})


def biography(weights: ComposedWeights, stages: Sequence[Stage], name: str, at: Sequence[int]) -> list[Moment]:
    """Return one coordinate's value at each stage; see `History.biography`."""
    name = weights.canonical(name)
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


class _Part(NamedTuple):
    """What there is to say of a range of a tensor: 1-D int32 each."""

    last: Tensor
    changes: Tensor
    returns: Tensor


def _ranges(numel: int) -> Iterator[tuple[int, int]]:
    yield from ((start, min(start + PIECE, numel)) for start in range(0, numel, PIECE))


def _part(weights: ComposedWeights, name: str, start: int, stop: int) -> _Part:
    born = weights.steps(name)[0].number
    last = torch.full((stop - start,), born, dtype=torch.int32)
    moves = torch.zeros_like(last)
    returns = torch.zeros_like(last)
    if len(weights.steps(name)) > 1:
        bits, held = _buffer(weights, name, start, stop), None
        for step in weights.making(name, start, stop, bits):
            if held is not None:
                moved = bits != held
                last[moved] = step.number
                moves += moved
            held = bits.clone()
        again = (moves > 1).nonzero().flatten()  # bits come back where there was more than one change
        rows = len(weights.steps(name))
        for some in torch.split(again, max(1, _BYTES // (rows * bits.element_size()))):
            returns[some] = moves[some] + 1 - _distinct(weights, name, start, stop, some)
    return _Part(last, moves if born == BASE else moves + 1, returns)


def _distinct(weights: ComposedWeights, name: str, start: int, stop: int, some: Tensor) -> Tensor:
    """Return how many different bits some coordinates of a range had over all stages. int32."""
    bits = _buffer(weights, name, start, stop)
    rows = [bits[some] for _ in weights.making(name, start, stop, bits)]
    ordered = torch.stack(rows).sort(dim=0).values
    return 1 + (ordered[1:] != ordered[:-1]).sum(dim=0, dtype=torch.int32)


def _buffer(weights: ComposedWeights, name: str, start: int, stop: int) -> Tensor:
    return torch.empty(stop - start, dtype=bits_dtype(weights.meta(name).dtype))
