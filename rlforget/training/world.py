"""The processes that train one model together, each with all of it, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rlforget.errors import WorldError
from rlforget.interference.ranks import world

Value = TypeVar("Value")


def world_size() -> int:
    """Return how many processes were started together, whether they have met or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes, where there are some: accelerate chooses the device and the backend."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def is_first() -> bool:
    """Return whether this process writes."""
    return world() == 1 or torch.distributed.get_rank() == 0


def from_first(make: Callable[[], Value]) -> Value:
    """Let the first process make something, and return it on all of them.

    Raises:
        WorldError: On the others, where it raised on the first: none waits for one that has stopped.
    """
    if world() == 1:
        return make()
    told: list[Any] = [None, ""]
    if is_first():
        try:
            told[0] = make()
        except BaseException as fault:
            told[1] = f"{type(fault).__name__}: {fault}"
            torch.distributed.broadcast_object_list(told, src=0)
            raise
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1]:
        raise WorldError("the first process", expected="it to go on", found=told[1], fix="Mend what it says.")
    found: Value = told[0]
    return found


def wait() -> None:
    """Wait until every process is here."""
    if world() > 1:
        torch.distributed.barrier()
