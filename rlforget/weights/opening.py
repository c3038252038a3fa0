"""One way in, whatever the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.distributed_metadata import is_distributed
from rlforget.weights.live import LiveWeights, ShardedWeights, module_tensors
from rlforget.weights.sharding import is_shard
from rlforget.weights.source import Weights, WeightsLike

Checkpoint: TypeAlias = CheckpointWeights | DistributedWeights
"""Weights that have a shape on disk, which others can be written in."""


def open_weights(source: WeightsLike, *, shards: bool = False) -> Weights:
    """Open weights for reading, tensor by tensor.

    Args:
        source: A checkpoint folder or `.safetensors` file (memory-mapped), a folder of torch.distributed.checkpoint
            (see `DistributedWeights` for the names), an `nn.Module` (parameters and persistent buffers), a mapping from
            names to tensors, or `Weights`, which are returned as they are.
        shards: Whether a module or mapping may be spread over the ranks of torch.distributed; see `ShardedWeights`.
            Every rank then has to call this.

    Raises:
        NotACheckpointError: A path that holds no readable checkpoint.
        LayoutError: A live tensor without plain values, of an unsupported dtype, or partly on top of another; or shards
            where whole tensors are needed.
        TypeError: `source` is none of these.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, str | PathLike):
        return open_checkpoint(Path(source))
    if isinstance(source, nn.Module | Mapping):
        return _live(source, shards)
    raise _not_weights(source)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder of either format, or a `.safetensors` file.

    Raises:
        NotACheckpointError: There is no readable checkpoint.
    """
    return DistributedWeights(path) if is_distributed(path) else CheckpointWeights(path)


def open_shards(source: Any) -> Weights | None:
    """Open live weights that are spread over ranks, on every rank; None of anything else."""
    if isinstance(source, nn.Module):
        spread = any(map(is_shard, module_tensors(source).values()))
    else:  # a mapping may be one of something else, as a delta is
        spread = isinstance(source, Mapping) and any(map(is_shard, source.values()))
    return open_weights(source, shards=True) if spread else None


def tensors_of(source: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of live weights by all their names, shards as such.

    Raises:
        TypeError: A mapping of something else.
    """
    if isinstance(source, nn.Module):
        return module_tensors(source)
    if not all(isinstance(value, torch.Tensor) for value in source.values()):
        raise _not_weights(source)
    return dict(source)


def _live(source: nn.Module | Mapping[str, torch.Tensor], shards: bool) -> LiveWeights:
    tensors = tensors_of(source)
    what = type(source).__name__ if isinstance(source, nn.Module) else f"a mapping of {len(tensors)} tensors"
    spread = shards and any(map(is_shard, tensors.values()))
    return ShardedWeights(what, tensors) if spread else LiveWeights(what, tensors)


def _not_weights(source: object) -> TypeError:
    return TypeError(f"weights are a path, a module or a mapping of names to tensors, not {type(source).__name__}")
