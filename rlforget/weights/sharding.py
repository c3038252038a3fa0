"""How the tensors of one model lie on the ranks of torch.distributed.

A shard is a DTensor's (FSDP2's `fully_shard`, tensor parallel) or a ShardedTensor's (FSDP1's sharded state dicts): both
tell which block of the tensor this rank holds. Everything that is said of a sharded model is in flat indices of the
whole tensor, whichever rank says it; what ranks exchange are sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from rlforget.errors import LayoutError
from rlforget.weights.box import Box
from rlforget.weights.ranks import agreed, gathered, rank

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sharding:
    """What this rank holds of each tensor.

    Attributes:
        boxes: {name: the block that is here}.
        counted: The tensors whose block this rank counts where ranks add up: of copies, the first.
    """

    boxes: Mapping[str, Box]
    counted: frozenset[str]

    def renamed(self, names: Mapping[str, str]) -> Sharding:
        """Return the same under other names: {new name: name here}."""
        boxes = {new: self.boxes[old] for new, old in names.items()}
        return Sharding(boxes, frozenset(new for new, old in names.items() if old in self.counted))

    def total(self, found: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Add up numbers of each tensor over the ranks that count it, as integers. Every rank has to call this."""
        told = gathered({name: numbers for name, numbers in found.items() if name in self.counted})
        return {
            name: [sum(column) for column in zip(*(one[name] for one in told if name in one), strict=True)]
            for name in found
        }


def is_shard(tensor: Any) -> bool:
    """Whether a tensor is spread over ranks, a DTensor or a ShardedTensor."""
    return hasattr(tensor, "to_local") or hasattr(tensor, "local_shards")


def here(tensor: Any) -> Tensor:
    """Return what of a tensor lies on this rank, without gradient tracking: its own memory, to be written to as well.

    Raises:
        LayoutError: Several blocks of it do.
    """
    if hasattr(tensor, "local_shards"):
        shards = tensor.local_shards()
        if len(shards) > 1:
            raise LayoutError(
                "a ShardedTensor",
                expected="one shard on a rank at most",
                found=f"{len(shards)}",
                fix="Shard it among the ranks in one dimension, as FSDP does.",
            )
        told = tensor.metadata()
        none = torch.empty(_nothing(tuple(told.size)), dtype=told.tensor_properties.dtype)
        found: Tensor = shards[0].tensor if shards else none
        return found.detach()
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def box_of(tensor: Any) -> Box:
    """Return the block of a tensor that lies on this rank: all of it where it is no shard."""
    if hasattr(tensor, "local_shards"):
        shards, shape = tensor.local_shards(), tuple(tensor.metadata().size)
        if not shards:
            return Box(shape, (0,) * len(shape), _nothing(shape))
        place = shards[0].metadata
        return Box(shape, tuple(place.shard_offsets), tuple(place.shard_sizes))
    shape = tuple(tensor.shape)
    if hasattr(tensor, "to_local"):
        if any(place.is_partial() for place in tensor.placements):
            raise LayoutError(
                "a DTensor",
                expected="shards or copies",
                found="partial sums, which are no values yet",
                fix="Redistribute it to Shard or Replicate first.",
            )
        (told,) = tensor.__create_chunk_list__()  # what torch.distributed.checkpoint goes by
        sizes = tuple(told.sizes)
        # Of a rank beyond the last row the offsets mean nothing.
        return Box(shape, tuple(told.offsets) if all(sizes) else (0,) * len(shape), sizes)
    return Box.whole(shape)


def sharding_of(tensors: Mapping[str, Any]) -> Sharding:
    """Return how tensors lie on the ranks. Every rank has to call this, with the same names.

    A tensor's ranks may be a part of all, the others having copies among ranks of their own, as what is not split among
    tensor-parallel ranks; those with the lowest rank then count.
    """
    spread = {name: _ranks(tensor) for name, tensor in tensors.items()}
    told = gathered(spread)
    first = {name: min(held[name] for held in told if name in held) for name in tensors}
    counted = (name for name, tensor in tensors.items() if spread[name] == first[name] and _first_copy(tensor))
    return Sharding({name: box_of(tensor) for name, tensor in tensors.items()}, frozenset(counted))


def together(make: Callable[[], Value], sharding: Sharding | None) -> Value:
    """Do something that may fail; of weights that are spread over ranks, go on only where it did on no rank.

    Raises:
        WorldError: It failed on another rank, or that is gone.
    """
    return make() if sharding is None else agreed(make)


def check_unsharded(module: nn.Module, what: str) -> None:
    """Hold that no parameter of a module is spread over ranks.

    Args:
        module: The module.
        what: What cannot do with shards, for the message.

    Raises:
        LayoutError: One is.
    """
    spread = next((name for name, parameter in module.named_parameters() if is_shard(parameter)), None)
    if spread is not None:
        raise LayoutError(
            f"{type(module).__name__}, parameter {spread!r}",
            expected=f"whole weights: {what} is not taken on shards",
            found="a shard",
            fix="Load the whole model, on each rank or on one.",
        )


def fully_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` (FSDP2) alone spreads a module over ranks: its layers then compute with whole weights."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    shards: list[Any] = [p for p in module.parameters() if hasattr(p, "to_local")]
    split_once = all(sum(not place.is_replicate() for place in p.placements) <= 1 for p in shards)
    return split_once and any(isinstance(part, FSDPModule) for part in module.modules())


def settle(module: nn.Module) -> None:
    """Put the shards of FSDP2 back in their place: after a forward pass some modules hold whole weights, copies."""
    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@contextmanager
def reducing(module: nn.Module) -> Iterator[None]:
    """Let FSDP2 reduce the gradients of the passes inside to the ranks' shards, and no others.

    A loop that accumulates may have told it not to (`set_requires_gradient_sync`), and have gradients of whole weights
    that wait for the next pass. Both are as found afterwards.
    """
    groups = _fsdp_groups(module)
    told = [(group.reduce_grads, group.all_reduce_grads, group._partial_reduce_output) for group in groups]
    waiting = [
        (one, getattr(one, "_unsharded_param", None), one.unsharded_accumulated_grad)
        for group in groups
        for one in group.fsdp_params
    ]
    grads = [None if whole is None else whole.grad for _, whole, _ in waiting]
    try:
        for group in groups:
            group.reduce_grads, group.all_reduce_grads, group._partial_reduce_output = True, True, None
        for one, whole, _ in waiting:
            one.unsharded_accumulated_grad = None
            if whole is not None:
                whole.grad = None
        yield
    finally:
        for group, (reduce, all_reduce, partial) in zip(groups, told, strict=True):
            group.reduce_grads, group.all_reduce_grads, group._partial_reduce_output = reduce, all_reduce, partial
        for (one, whole, accumulated), grad in zip(waiting, grads, strict=True):
            one.unsharded_accumulated_grad = accumulated
            if whole is not None:
                whole.grad = grad


def _fsdp_groups(module: nn.Module) -> list[Any]:
    """Return FSDP2's groups of parameters, each gathered and reduced together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    states: list[Any] = [part._get_fsdp_state() for part in module.modules() if isinstance(part, FSDPModule)]
    found = [getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group] for state in states]
    return [group for groups in found for group in groups if group is not None]


def _nothing(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (0, *shape[1:])


def _ranks(tensor: Any) -> list[int]:
    """Return the ranks that a tensor is spread over, in order."""
    if hasattr(tensor, "local_shards"):
        return sorted(distributed.get_process_group_ranks(tensor._process_group))
    if hasattr(tensor, "to_local"):
        return sorted(tensor.device_mesh.mesh.flatten().tolist())
    return [rank()]


def _first_copy(tensor: Any) -> bool:
    """Return whether this rank holds a shard, or the first of its mesh's copies."""
    if not hasattr(tensor, "to_local"):
        return True
    place = tensor.device_mesh.get_coordinate()
    # Of a shard that is split again by another dimension of the mesh, `is_shard` says no.
    return place is not None and all(
        not p.is_replicate() or at == 0 for p, at in zip(tensor.placements, place, strict=True)
    )
