"""Repair a model that is sharded over several GPUs, without ever gathering it.

    python examples/repair_sharded.py checkpoints/math checkpoints/writing math writing repaired

started by `torchrun --nproc-per-node 8` in the place of `python`.

Every rank holds its shards, finds and takes off its part of the correction, and tells the others sums alone.
"""

from __future__ import annotations

import os
import sys

import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

import rlforget as rf


def main(before: str, after: str, restore: str, protect: str, out: str, samples: str = "64") -> None:
    gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    model = AutoModelForCausalLM.from_pretrained(after, dtype="auto").to("cuda" if gpu else "cpu")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)

    delta = rf.diff(before, model)
    subspace = rf.conflict_subspace(model, delta, restore=[restore], protect=[protect], samples=int(samples))
    undo = rf.rollback(model, delta, subspace)
    rf.save_checkpoint(out, model, like=after)
    if torch.distributed.get_rank() == 0:
        report = undo.report
        print(
            f"{delta.changed:,} coordinates changed; {report.written:,} rewritten, {report.norm_share:.1%} of δ's norm"
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
