"""Work on one model's samples spread over the ranks of torch.distributed; a lone process does all of it.

Every rank holds the whole model and learns every result, so that all of them go on alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rlforget.interference.completions import Batch, completed

Value = TypeVar("Value")


def world() -> int:
    """Return the number of ranks, 1 without torch.distributed."""
    return distributed.get_world_size() if _running() else 1


def mine(position: int) -> bool:
    """Whether this rank does the piece of work at `position`: they are dealt in turns, back and forth.

    So that where later pieces cost more than earlier ones, ranks still have equal work.
    """
    if not _running():
        return True
    ranks = distributed.get_world_size()
    lap, place = divmod(position, ranks)
    return (place if lap % 2 == 0 else ranks - 1 - place) == distributed.get_rank()


def summed(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, the same bits on each of them; `value` is overwritten."""
    if world() > 1:
        device = _device(value)
        moved = value.to(device)
        distributed.all_reduce(moved)
        distributed.broadcast(moved, src=0)
        value.copy_(moved)
    return value


def gathered(value: Value) -> list[Value]:
    """Return every rank's `value`, in the order of the ranks, on each of them."""
    if world() == 1:
        return [value]
    told: list[Any] = [None] * world()
    distributed.all_gather_object(told, value)
    return told


def completed_by_ranks(
    model: Any, batches: Sequence[Batch], *, seed: int, tokenizer: Any = None
) -> list[dict[str, Tensor]]:
    """Complete batches, each on one rank with its own seed as in `completed`, and tell every rank the results."""
    if world() == 1 or all("labels" in batch for batch in batches):
        return list(completed(model, list(batches), seed=seed, tokenizer=tokenizer))
    own = {i for i in range(len(batches)) if mine(i)}
    found = completed(model, list(batches), seed=seed, tokenizer=tokenizer, only=own)
    told = gathered(dict(zip(sorted(own), ({k: v.cpu() for k, v in one.items()} for one in found), strict=True)))
    device = next(model.parameters()).device
    every = {position: one for part in told for position, one in part.items()}
    return [{name: value.to(device) for name, value in every[i].items()} for i in range(len(batches))]


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device(value: Tensor) -> torch.device:
    """Where the backend can reduce: NCCL takes CUDA tensors alone."""
    if distributed.get_backend() == "nccl" and not value.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return value.device
