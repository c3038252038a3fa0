"""Tensors that are kept in pieces: which block of the tensor each holds, and where its values lie in which file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlforget.weights.box import Box
from rlforget.weights.raw_io import read_fully


@dataclass(frozen=True)
class Values:
    """Where the values of a chunk lie.

    Attributes:
        file: The file.
        start: Position of the first value, in bytes.
        strides: How far apart neighbours in each dimension are, in values; None: row by row, without gaps.
    """

    file: Path
    start: int
    strides: tuple[int, ...] | None = None

    def read(self, sizes: tuple[int, ...], first: int, out: Tensor) -> None:
        """Fill `out`, 1-D integers, with the values from the flat index `first` on.

        Args:
            sizes: The chunk's shape.
            first: Row-major flat index in the chunk.
            out: 1-D, contiguous, on the CPU.

        Raises:
            OSError: The file cannot be read, or ends before.
        """
        if self.strides is None:
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                read_fully(descriptor, out.numpy().view("uint8").data, self.start + first * out.itemsize)
            finally:
                os.close(descriptor)
            return
        # Values that lie otherwise, a transposed tensor's, are mapped and gathered row by row.
        reach = 1 + sum((size - 1) * step for size, step in zip(sizes, self.strides, strict=True))
        mapped = np.memmap(self.file, np.uint8, "c", self.start, (reach * out.itemsize,))
        rows = torch.from_numpy(mapped).view(out.dtype).as_strided(sizes, self.strides)
        width = prod(sizes[1:])
        top, bottom = first // width, -(-(first + out.numel()) // width)
        out.copy_(rows[top:bottom].reshape(-1)[first - top * width :][: out.numel()])


def fault_in(shape: tuple[int, ...], boxes: Sequence[Box]) -> str | None:
    """Return what is wrong with blocks that are to make up a tensor, each value once; None: nothing."""
    for box in boxes:
        if any(at + size > whole for at, size, whole in zip(box.offsets, box.sizes, shape, strict=True)):
            return f"a chunk of {list(box.sizes)} at {list(box.offsets)}, which is outside of {list(shape)}"
    starts = np.array([box.offsets for box in boxes], dtype=np.int64).reshape(len(boxes), len(shape))
    ends = starts + np.array([box.sizes for box in boxes], dtype=np.int64).reshape(starts.shape)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if ((starts[:number] < end) & (start < ends[:number])).all(axis=1).any():
            return f"a chunk at {list(boxes[number].offsets)} on top of another"
    held, numel = sum(box.numel for box in boxes), prod(shape)
    return None if held == numel else f"chunks of {held:,} of its {numel:,} values"
