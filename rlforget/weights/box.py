"""Blocks of tensors: what one rank holds of a tensor that is spread over several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A block of a tensor: a range of every dimension.

    Attributes:
        shape: The whole tensor's.
        offsets: Where the block begins, in each dimension.
        sizes: How far it goes. A block may be empty, as on ranks beyond the rows of a small tensor.
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the block that is all of a tensor."""
        return cls(shape, (0,) * len(shape), shape)

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the tensor."""
        return self.sizes == self.shape

    @property
    def numel(self) -> int:
        """The number of coordinates in the block."""
        return prod(self.sizes)

    @property
    def slices(self) -> tuple[slice, ...]:
        """What takes the block out of the whole tensor."""
        return tuple(slice(at, at + size) for at, size in zip(self.offsets, self.sizes, strict=True))

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, slice]]:
        """Yield the ranges of flat indices that are consecutive on both sides: in the block, in the whole tensor.

        Args:
            start: Flat index in the whole tensor from which on they are wanted.
            stop: Index after the last one; None: to the end.
        """
        first = self.before(start)
        last = self.numel if stop is None else self.before(stop)
        if first >= last:
            return
        split = max((axis for axis, size in enumerate(self.sizes) if size != self.shape[axis]), default=0)
        length = prod(self.sizes[split:])
        begins = torch.arange(first - first % length, last, length)
        for here, there in zip(begins.tolist(), self.to_whole(begins).tolist(), strict=True):
            low, high = max(first, here), min(last, here + length)
            yield slice(low, high), slice(there + low - here, there + high - here)

    def before(self, index: int) -> int:
        """Return how many of the block's coordinates come before a flat index of the whole tensor."""
        count, rest = 0, index
        for axis, (at, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            below, inside = prod(self.shape[axis + 1 :]), prod(self.sizes[axis + 1 :])
            if not below:
                return 0  # nothing is in the whole tensor
            place, rest = divmod(rest, below)
            count += min(max(place - at, 0), size) * inside
            if not at <= place < at + size:
                return count
        return count if self.shape else min(index, 1)

    def to_whole(self, indices: Tensor) -> Tensor:
        """Return int64 flat indices in the whole tensor for flat indices in the block."""
        return self._moved(indices, self.sizes, self.shape, 1)

    def to_block(self, indices: Tensor) -> Tensor:
        """Return int64 flat indices in the block for flat indices in the whole tensor, all of them in the block."""
        return self._moved(indices, self.shape, self.sizes, -1)

    def holds(self, indices: Tensor) -> Tensor:
        """Return which flat indices in the whole tensor are in the block: bools."""
        rest, held = indices.to(torch.int64), torch.ones_like(indices, dtype=torch.bool)
        for size, at, length in zip(*(reversed(x) for x in (self.shape, self.offsets, self.sizes)), strict=True):
            place = rest % size
            held &= (place >= at) & (place < at + length)
            rest = rest // size
        return held

    def _moved(self, indices: Tensor, source: tuple[int, ...], target: tuple[int, ...], sign: int) -> Tensor:
        rest = indices.to(torch.int64)
        if source == target:
            return rest
        moved, stride = torch.zeros_like(rest), 1
        for from_, to, at in zip(*(reversed(x) for x in (source, target, self.offsets)), strict=True):
            moved += (rest % from_ + sign * at) * stride
            rest = rest // from_
            stride *= to
        return moved
