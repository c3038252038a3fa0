"""One way in, whatever the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.distributed_metadata import is_distributed
from rlforget.weights.live import LiveWeights, module_tensors
from rlforget.weights.source import Weights, WeightsLike


def open_weights(source: WeightsLike) -> Weights:
    """Open weights for reading, tensor by tensor.

    Args:
        source: A checkpoint folder or `.safetensors` file (memory-mapped), a folder of torch.distributed.checkpoint
            (see `DistributedWeights` for the names), an `nn.Module` (parameters and persistent buffers), a mapping from
            names to tensors, or `Weights`, which are returned as they are.

    Raises:
        NotACheckpointError: A path that holds no readable checkpoint.
        LayoutError: A live tensor without plain values, of an unsupported dtype, or partly on top of another.
        TypeError: `source` is none of these.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, str | PathLike):
        return open_checkpoint(Path(source))
    if isinstance(source, nn.Module):
        return LiveWeights(type(source).__name__, module_tensors(source))
    if isinstance(source, Mapping) and all(isinstance(value, torch.Tensor) for value in source.values()):
        return LiveWeights(f"a mapping of {len(source)} tensors", source)
    raise TypeError(f"weights are a path, a module or a mapping of names to tensors, not {type(source).__name__}")


def open_checkpoint(path: Path) -> CheckpointWeights | DistributedWeights:
    """Open a checkpoint folder of either format, or a `.safetensors` file.

    Raises:
        NotACheckpointError: There is no readable checkpoint.
    """
    return DistributedWeights(path) if is_distributed(path) else CheckpointWeights(path)
