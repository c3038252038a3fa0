"""The interface through which every other part of the project reads weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias, Union

import torch
from torch import nn

from rlforget.weights.box import Box
from rlforget.weights.layout import Layout
from rlforget.weights.sharding import Sharding
from rlforget_kernels.common.bits import bits_dtype


class Weights(Layout, ABC):
    """Named tensors whose values are read when they are asked for, one at a time.

    Attributes:
        sharding: Which block of each tensor is on this rank, by canonical name; None: all of them are whole.
    """

    sharding: Sharding | None = None

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor; aliases are accepted.

        From a live module or a mapping this is the tensor itself, without gradient tracking: writing into it changes
        the model. From a checkpoint it is memory-mapped and must be treated as read-only.

        Raises:
            UnknownNameError: There is no such tensor.
        """

    @abstractmethod
    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the stored bits of a range of a tensor; aliases are accepted. Safe to call from several threads.

        Unlike `tensor`, a checkpoint is read, not mapped: pages that are mapped count as memory of the process for as
        long as they stay, so that a pass over a model would seem to hold all of it.

        Args:
            name: The tensor.
            start: Row-major flat index of the first coordinate.
            stop: Index after the last one; None: to the end.
            out: Where to put them: 1-D, contiguous, on the CPU, `stop - start` integers of the dtype's width.

        Returns:
            1-D integers of the dtype's width, on the CPU: `out` where it was given, else memory of its own or, from
            live weights on the CPU, a view. Not to be written to.

        Raises:
            UnknownNameError: There is no such tensor.
            NotACheckpointError: The file ends before its header says.
        """

    def block(self, name: str, box: Box) -> torch.Tensor:
        """Return a block of a tensor, of the block's shape; aliases are accepted. To be treated as read-only.

        Raises:
            UnknownNameError: There is no such tensor.
            NotACheckpointError: The file ends before its header says.
        """
        if box.is_whole:
            return self.tensor(name)
        dtype = self.meta(name).dtype
        bits = torch.empty(box.numel, dtype=bits_dtype(dtype))
        for here, there in box.runs():
            self.bits(name, there.start, there.stop, bits[here])
        return bits.view(dtype).view(box.sizes)

    def places(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Return where flat indices of a whole tensor stand in what `tensor` returns; aliases are accepted."""
        return indices

    def counted_here(self, name: str) -> bool:
        """Whether this rank counts what it holds of a tensor, by its canonical name, where ranks add up."""
        return self.sharding is None or name in self.sharding.counted

    def files(self) -> Mapping[str, Path | bytes] | None:
        """Return the files that belong to the weights without being weights, e.g. config and tokenizer, by name.

        Returns:
            Each file's path, or its bytes where it is on no disk. None: these weights are no folder.
        """
        return None


CHUNK = 1 << 22
"""Coordinates that are read at a time where a whole model passes by."""


WeightsLike: TypeAlias = Union[str, "PathLike[str]", nn.Module, Mapping[str, torch.Tensor], Weights]
"""What stands for weights: a checkpoint folder or `.safetensors` file, a module, `{name: tensor}`, or `Weights`."""
