"""One rank of a run that is watched with protected domains: by torchrun on shards, or alone.

Rank 0 writes what was measured to a file. All ranks train on the same batches, so the weights are those of one process.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import rlforget as rf
from rlforget.domains.miniature.pretrain import build_model
from rlforget.domains.miniature.tokenizer import build_tokenizer
from rlforget.errors import ForgettingWarning, OutputError, WorldError
from tests.training.monitor.loops import completions, train


def main(out: str, form: str) -> None:
    torch.set_num_threads(1)
    model, earlier = build_model(0, "0.2M"), Path(f"{out}-earlier.delta.safetensors")
    if form != "alone":
        distributed.init_process_group("gloo")
    alone = form == "alone" or distributed.get_rank() == 0
    if alone:
        earlier_delta(model).save(earlier)
    if form != "alone":
        distributed.barrier()
        _shard(model, form)
        _without_room(model, Path(out).parent)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ForgettingWarning)
        tracker = rf.Tracker(
            model,
            optimizer,
            every=2,
            protect={"math": "math", "given": completions()},
            fisher_samples=6,
            held_samples=3,
            earlier={"code": earlier},
            evaluate=["math"],
            evaluate_count=4,
            warn_at=1e-9,
            tokenizer=build_tokenizer(),
        )
        train(model, optimizer, 4)
        tracker.finish()
    given = sum(issubclass(one.category, ForgettingWarning) for one in caught)
    if alone:
        kept = [figures.to_dict() for figures in tracker.measured]
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "dtypes")} for row in kept]
        Path(out).write_text(json.dumps({"rows": rows, "warnings": given}))
    else:
        assert given == 0
    if form != "alone":
        distributed.destroy_process_group()


def earlier_delta(model: Any) -> rf.Delta:
    """A change of every third coordinate."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = {name: p.clone() for name, p in before.items()}
    for value in after.values():
        value.view(-1)[::3] += 1.0
    return rf.diff(before, after)


def _without_room(model: Any, folder: Path) -> None:
    """Where one rank cannot keep what it has to, none waits for it."""
    last = distributed.get_rank() == distributed.get_world_size() - 1
    with pytest.raises(OutputError if last else WorldError):
        rf.Tracker(model, keep="disk", folder=folder / "none" if last else folder, tokenizer=build_tokenizer())


def _shard(model: Any, form: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size = distributed.get_world_size()
    copies = {"mesh_shape": (2, size // 2), "mesh_dim_names": ("copies", "shards")}
    mesh = init_device_mesh("cpu", **({"mesh_shape": (size,)} if form == "fsdp" else copies))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
