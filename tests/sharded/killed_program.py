"""One rank of a rollback in which rank 1 fails or dies at the second tensor; the others must hold their old bits.

Started as `RANK=... WORLD_SIZE=... python -m tests.sharded.killed_program FOLDER raise|kill`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed

import rlforget as rf
from rlforget.errors import WorldError
from rlforget.recovery import old_bits
from rlforget.weights.sharding import here
from rlforget_kernels.common.bits import as_bits
from tests.interference.conftest import perturbed, tiny_model
from tests.sharded.forms import sharded


def main(folder: str, how: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    base = tiny_model()
    model, before = sharded(perturbed(base, 0.02, seed=1), "fsdp"), sharded(base, "fsdp")
    delta = rf.diff(before, model)
    chosen = rf.conflict(delta, score="magnitude").top(fraction=0.2)
    old = {name: as_bits(here(parameter)).clone() for name, parameter in model.named_parameters()}
    if rank == 1:
        _fail_at_second_tensor(how)
    try:
        rf.rollback(model, delta, chosen)
        found = "written"
    except (WorldError, MemoryError) as fault:
        found = f"{type(fault).__name__}: {fault}"
    held = all(torch.equal(as_bits(here(parameter)), old[name]) for name, parameter in model.named_parameters())
    (Path(folder) / f"{rank}.txt").write_text(f"{held} {found}")
    os._exit(0)  # nothing waits for the rank that is gone


def _fail_at_second_tensor(how: str) -> None:
    write = old_bits.foreach_rollback_

    def failing(*lists: list[torch.Tensor], strength: float) -> None:
        write(*([*one[:1]] for one in lists), strength=strength)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("no memory on this rank")

    old_bits.foreach_rollback_ = failing  # type: ignore[assignment]


if __name__ == "__main__":
    main(*sys.argv[1:])
