"""The interface through which every other part of the project reads weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from typing import TypeAlias, Union

import torch
from torch import nn

from rlforget.weights.layout import Layout


class Weights(Layout, ABC):
    """Named tensors whose values are read when they are asked for, one at a time."""

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor; aliases are accepted.

        From a live module or a mapping this is the tensor itself, without gradient tracking: writing into it changes
        the model. From a checkpoint it is memory-mapped and must be treated as read-only.

        Raises:
            UnknownNameError: There is no such tensor.
        """


WeightsLike: TypeAlias = Union[str, "PathLike[str]", nn.Module, Mapping[str, torch.Tensor], Weights]
"""What stands for weights: a checkpoint folder or `.safetensors` file, a module, `{name: tensor}`, or `Weights`."""
