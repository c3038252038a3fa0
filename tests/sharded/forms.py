"""Ways to spread a model over the ranks."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn


def sharded(model: Any, form: str) -> Any:
    """Return a model, spread over all ranks in place, or its sharded state.

    Args:
        model: A tiny Qwen2.
        form: "alone"; "fsdp", FSDP2; "copies", FSDP2 with two copies of every shard; "tensor", FSDP2 over tensor
            parallel; "states", the sharded state dict of FSDP1.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if form == "alone":
        return model
    size = distributed.get_world_size()
    if form == "states":
        return _state(model)
    if form == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
    elif form == "copies":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "shards"))
    else:
        mesh = _tensor_parallel(model, size)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _tensor_parallel(model: nn.Module, size: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    both = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
    plan = {"up_proj": ColwiseParallel(), "gate_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.mlp, both["tensor"], plan)
    return both["data"]


def _state(model: nn.Module) -> dict[str, Any]:
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType

    spread = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    config = ShardedStateDictConfig()
    with FullyShardedDataParallel.state_dict_type(spread, StateDictType.SHARDED_STATE_DICT, config):
        state: dict[str, Any] = spread.state_dict()
    del state["lm_head.weight"]  # which is tied; this engine hands out a copy for each name
    return state
