"""The Gram matrix of an embedding's gradients: only positions of one and the same token meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.operands_cpu import (
    SIDE,
    TILE,
    fill_rows,
    floats,
    left_of_rows,
    multiply,
    place,
    right_of_rows,
    room,
)
from rlforget_kernels.common.threads import in_order
from rlforget_kernels.gradient_gram.positions_cpu import Positions

_FEATURES = 128  # that one task sums at a time: the depth of an operand
_SUMS = 1 << 21  # entries of the partial Gram matrices: 16 MiB
_LANES = 16


def gram(sides: tuple[Positions, ...]) -> Tensor:
    """Return the Gram matrix of one side's samples, of which the lower half counts, or that of two sides; float64."""
    first, last = sides[0], sides[-1]
    features = first.gradients.width
    lanes = max(1, min(_LANES, _SUMS // (first.samples * last.samples), -(-features // _FEATURES)))
    sums = torch.zeros(lanes, first.samples, last.samples, dtype=torch.float64)
    ordered = [(side.gradients.values, *_by_token(side)) for side in sides]

    def work(lane: int) -> None:
        rows = [(floats((side.samples + SIDE) * _FEATURES), np.empty(side.samples, np.int64)) for side in (first, last)]
        operands = (room(1), room(1), room(1), floats(TILE))
        for feature in range(lane * _FEATURES, features, lanes * _FEATURES):
            target = sums[lane].numpy()
            _add(ordered[0], ordered[-1], len(sides) == 1, feature, target, *rows, floats(_FEATURES), operands)

    for _ in in_order(work, range(lanes)):
        pass
    return sums.sum(0)


def _by_token(side: Positions) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return tokens in ascending order with the sample and the position of each, samples of one token ascending."""
    start, stop = int(side.starts[0]), int(side.starts[-1])
    tokens = side.inputs.flat[side.inputs.offsets[start:stop]].astype(np.int64)
    order = np.argsort(tokens, kind="stable")
    samples = np.repeat(np.arange(side.samples), np.diff(side.starts))
    return tokens[order], samples[order], order + start


@jit
def _add(side, other, lower, feature, target, rows, other_rows, position, operands):
    """Add the inner products of _FEATURES features to `target`, token after token."""
    tokens, other_tokens = side[1], other[1]
    i = j = 0
    while i < tokens.size and j < other_tokens.size:
        if tokens[i] < other_tokens[j]:
            i = _end_of(tokens, i)
        elif tokens[i] > other_tokens[j]:
            j = _end_of(other_tokens, j)
        else:
            i_stop, j_stop = _end_of(tokens, i), _end_of(other_tokens, j)
            count = _gather(side, i, i_stop, feature, rows, position)
            other_count = _gather(other, j, j_stop, feature, other_rows, position)
            _add_tiles(rows, count, other_rows, other_count, lower, target, operands)
            i, j = i_stop, j_stop


@jit
def _end_of(tokens, start):
    """Where the positions of the token at `start` end."""
    stop = start + 1
    while stop < tokens.size and tokens[stop] == tokens[start]:
        stop += 1
    return stop


@jit
def _gather(side, start, stop, feature, rows, position):
    """Sum the gradients of the positions start ... stop for each sample; return how many samples there are."""
    values, _, samples, order = side
    sums, found = rows
    count = 0
    for p in range(start, stop):
        if count == 0 or found[count - 1] != samples[p]:
            sums[count * _FEATURES : (count + 1) * _FEATURES] = 0
            found[count] = samples[p]
            count += 1
        fill_rows(values, order[p], 1, 1, feature, position, _FEATURES)
        out = sums[(count - 1) * _FEATURES : count * _FEATURES]
        for f in range(_FEATURES):
            out[f] += position[f]
    sums[count * _FEATURES : -(-count // SIDE) * SIDE * _FEATURES] = 0
    return count


@jit
def _add_tiles(rows, count, other_rows, other_count, lower, target, operands):
    """Add the products of the samples' sums to `target`."""
    (sums, samples), (other_sums, other_samples) = rows, other_rows
    left, right, spare, tile_sums = operands
    for tile in range(0, count, SIDE):
        left_of_rows(False, sums, tile * _FEATURES, _FEATURES, _FEATURES, left, 0)
        for panel in range(0, tile + 1 if lower else other_count, SIDE):
            right_of_rows(False, other_sums, panel * _FEATURES, _FEATURES, _FEATURES, right, 0, spare)
            tile_sums[:] = 0
            multiply(False, left, 0, right, 0, tile_sums, 0, _FEATURES)
            for i in range(min(SIDE, count - tile)):
                for j in range(min(SIDE, other_count - panel)):
                    found = np.float64(tile_sums[place(False, i, j)])
                    target[samples[tile + i], other_samples[panel + j]] += found
