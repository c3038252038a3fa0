"""The processes that train one model together, each with all of it, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os

import torch


def world_size() -> int:
    """Return how many processes were started together, whether they have met or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes, where there are some: accelerate chooses the device and the backend."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
