"""One rank of two that save a model: by torchrun, into FOLDER, in every way in which torch saves shards."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def main(folder: Path) -> None:
    """Save one model by FSDP2, in columns, and as safetensors in parts and whole."""
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1), nn.LayerNorm(1)).bfloat16()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if distributed.get_rank() == 0:
        save_file(whole, folder / "whole.safetensors")
    mesh = init_device_mesh("cpu", (2,))
    columns = {
        name: distribute_tensor(tensor, mesh, [Shard(1) if tensor.dim() > 1 else Replicate()])
        for name, tensor in whole.items()
    }
    dcp.save({"model": columns}, checkpoint_id=folder / "columns")
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    shards, moments = get_state_dict(model, optimizer)
    dcp.save({"model": shards, "optim": moments, "step": 1}, checkpoint_id=folder / "fsdp")
    for name, merged in (("apart", False), ("consolidated", True)):
        writer = dcp.HuggingFaceStorageWriter(str(folder / name), save_distributed=True, enable_consolidation=merged)
        dcp.save(shards, storage_writer=writer)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
