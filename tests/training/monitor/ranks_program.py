"""One rank of a monitored run: by torchrun on shards, or alone. Rank 0 writes what was measured to a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import rlforget as rf


class Uneven(nn.Module):
    """Rows that no number of ranks divides, fewer rows than ranks, and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 3, bias=True).bfloat16() if k else nn.Linear(6, 7) for k in range(3))
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embedding.weight


def main(out: str, form: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Uneven()
    checkpoint, history = Path(f"{out}-base"), Path(f"{out}-history")
    if form == "alone" or int(os.environ["RANK"]) == 0:
        rf.save_checkpoint(checkpoint, model)
        rf.History.init(history, checkpoint)
    if form != "alone":
        distributed.init_process_group("gloo")
        distributed.barrier()
        _shard(model, form)
    start = {name: here(p).clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tracker = rf.Tracker(model, optimizer, every=2, dtype=None, reference=checkpoint, history=history, commit_every=2)
    _walk(model, start, optimizer)
    tracker.finish()
    if form == "alone" or distributed.get_rank() == 0:
        kept = [figures.to_dict() for figures in tracker.measured]
        Path(out).write_text(json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in kept]))
    if form != "alone":
        distributed.destroy_process_group()


def here(parameter: Any) -> torch.Tensor:
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach()


def _shard(model: Any, form: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size = distributed.get_world_size()
    if form == "tensor":  # tensor parallel, and sharded again
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        both = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
        plans = {"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}
        parallelize_module(model, both["tensor"], plans)
        fully_shard(model, mesh=both["data"])
        return
    if form == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
    else:  # copies of shards
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "shards"))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _walk(model: Any, start: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Move the weights the same way however they are sharded: a gradient that is a function of each weight alone."""
    for step in range(4):
        for name, p in model.named_parameters():
            local = here(p)
            gradient = torch.where((local * 1e4).long() % 3 == 0, torch.zeros_like(local), start[name] * (step + 1))
            p.grad = _like(gradient, p)
        optimizer.step()


def _like(gradient: torch.Tensor, parameter: Any) -> Any:
    if not hasattr(parameter, "to_local"):
        return gradient
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        gradient, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
