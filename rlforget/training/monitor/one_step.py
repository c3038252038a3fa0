"""What a single optimizer step changed: the sparsity that decides what a weight update between steps costs to send."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget.delta.stats import Change, combine, named_change
from rlforget.training.monitor.trained import Line, Trained
from rlforget_kernels.delta_stats import DeltaStats, foreach_delta_stats

COORDINATES = 1 << 24
"""How many are compared at most: a share of some 1% is then known to a few parts in a thousand."""
_BLOCK = 1 << 12


class OneStep:
    """Holds the weights before a step, all of them or blocks spread evenly, in main memory.

    Args:
        trained: The parameters.
    """

    def __init__(self, trained: Trained) -> None:
        total = sum(line.numel for line in trained.lines)
        every = -(-total // COORDINATES)
        self._lines = [(line, _blocks(line, every)) for line in trained.lines]
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """Note the weights; a step is about to be taken."""
        self._before = [_gathered(line, blocks).cpu() for line, blocks in self._lines]

    def end(self) -> Change:
        """Compare with the weights now, in their own dtypes."""
        changes = []
        for (line, blocks), before in zip(self._lines, self._before, strict=True):
            now = _gathered(line, blocks)
            measured = DeltaStats(*foreach_delta_stats([before.to(line.device)], [now]))
            changes.append(named_change(now.dtype, now.numel(), int(measured.count("changed")), measured, 0))
        self._before = []
        return combine(changes)


def _blocks(line: Line, every: int) -> list[tuple[int, int]]:
    """Return the ranges that are compared: of consecutive blocks, one in `every`."""
    if every == 1:
        return [(0, line.numel)]
    return [(start, min(start + _BLOCK, line.numel)) for start in range(0, line.numel, _BLOCK * every)]


def _gathered(line: Line, blocks: list[tuple[int, int]]) -> Tensor:
    return torch.cat([line.values(start, stop) for start, stop in blocks])
