"""Which coordinates an earlier stage changed, a bit each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget.delta import Delta, DeltaFile
from rlforget.training.monitor.keeping import Keeper
from rlforget.training.monitor.trained import STRETCH, Line, Stretch, Trained
from rlforget.weights.box import Box
from rlforget.weights.sharding import box_of

Indices = npt.NDArray[np.int64]


class ChangedEarlier:
    """The coordinates that a delta changed among the trained ones, an eighth of a byte a coordinate.

    Args:
        delta: The earlier change; a file is read a range at a time, without the weights at its ends.
        trained: The parameters.
        keeper: Where the bits are kept.

    Attributes:
        count: How many of the trained coordinates that are counted here it changed.

    Raises:
        LayoutError: The delta is of another architecture.
        DeltaFileError: The file is damaged, or does not tell what it changed without the weights before.
    """

    def __init__(self, delta: Delta | DeltaFile, trained: Trained, keeper: Keeper) -> None:
        trained.check_shapes("the delta of an earlier stage", lambda name: _shape(delta, name))
        self.count = 0
        self._lines = [self._packed(delta, line, keeper) for line in trained.lines]

    def common(self, stretch: Stretch, changed: Tensor) -> Tensor:
        """Count the coordinates of a range that were changed earlier and are among `changed`, bool [n].

        Returns:
            An int64 scalar on the device of `changed`.
        """
        size = stretch.stop - stretch.start
        first = stretch.start // 8
        packed = self._lines[stretch.line][first : first + (size + 7) // 8].to(changed.device, non_blocking=True)
        places = torch.arange(8, dtype=torch.uint8, device=changed.device)
        bits = (packed.unsqueeze(1) >> places & 1).view(-1)[:size]  # [n]
        return (bits.bool() & changed).sum()

    def _packed(self, delta: Delta | DeltaFile, line: Line, keeper: Keeper) -> Tensor:
        kept = keeper.empty((line.numel + 7) // 8, torch.uint8, line.device)
        for start in range(0, line.numel, STRETCH):
            stop = min(start + STRETCH, line.numel)
            flags = np.zeros(stop - start, dtype=np.bool_)
            for name, begin, first, last in line.parts(start, stop):
                found = _indices_here(delta, name, box_of(line.parameters[name]), first, last)
                flags[found + (begin - start)] = True
            self.count += int(flags.sum())
            packed = np.packbits(flags, bitorder="little")
            kept[start // 8 : start // 8 + packed.size].copy_(torch.from_numpy(packed))
        return kept


def _shape(delta: Delta | DeltaFile, name: str) -> tuple[int, ...] | None:
    if isinstance(delta, Delta):
        return delta[name].shape if name in delta else None
    entry = delta.tensors.get(delta.aliases.get(name, name))
    return None if entry is None else tuple(entry.meta.shape)


def _indices_here(delta: Delta | DeltaFile, name: str, box: Box, start: int, stop: int) -> Indices:
    """Return the flat indices that changed in a range of what of a tensor lies on this rank."""
    if box.is_whole or start == stop:
        return _indices(delta, name, start, stop)
    first, last = box.to_whole(torch.tensor([start, stop - 1])).tolist()
    found = torch.from_numpy(_indices(delta, name, first, last + 1))
    here: Indices = box.to_block(found[box.holds(found)]).numpy()
    return here


def _indices(delta: Delta | DeltaFile, name: str, start: int, stop: int) -> Indices:
    """Return the flat indices that changed in a range of a tensor."""
    if isinstance(delta, DeltaFile):
        return delta.patch(name, start, stop).indices.numpy().astype(np.int64)
    indices = delta[name].indices.numpy()
    low, high = np.searchsorted(indices, (start, stop))
    return indices[low:high].astype(np.int64)
