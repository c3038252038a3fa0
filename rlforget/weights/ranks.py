"""The ranks of torch.distributed, as far as this project needs them; a lone process is a world of one.

What ranks tell each other is small: sums, histograms, short lists. Weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rlforget.errors import WorldError

Value = TypeVar("Value")


def world() -> int:
    """Return the number of ranks, 1 without torch.distributed."""
    return distributed.get_world_size() if _running() else 1


def rank() -> int:
    """Return this process's rank, 0 without torch.distributed."""
    return distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes for all."""
    return rank() == 0


def mine(position: int) -> bool:
    """Whether this rank does the piece of work at `position`: they are dealt in turns, back and forth.

    So that where later pieces cost more than earlier ones, ranks still have equal work.
    """
    ranks = world()
    lap, place = divmod(position, ranks)
    return (place if lap % 2 == 0 else ranks - 1 - place) == rank()


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
    """Return every rank's `value`, in the order of the ranks, on each of them.

    Raises:
        WorldError: Another rank is gone.
    """
    if world() == 1:
        return [value]
    told: list[Any] = [None] * world()
    with _hearing():
        distributed.all_gather_object(told, value)
    return told


def first_hears(value: Value) -> list[Value]:
    """Return every rank's `value`, in the order of the ranks, on the first; nothing on the others.

    Raises:
        WorldError: Another rank is gone.
    """
    told: list[Any] | None = [None] * world() if is_first() else None
    with _hearing():
        distributed.gather_object(value, told, dst=0)
    return told or []


def first_says(value: Value) -> Value:
    """Return the first rank's `value` on each of them.

    Raises:
        WorldError: Another rank is gone.
    """
    told: list[Any] = [value]
    with _hearing():
        distributed.broadcast_object_list(told, src=0)
    said: Value = told[0]
    return said


def from_first(make: Callable[[], Value]) -> Value:
    """Let the first rank make something, and return it on all of them.

    Raises:
        WorldError: On the others, where it raised on the first: none waits for one that has stopped.
    """
    if world() == 1:
        return make()
    if is_first():
        try:
            made = make()
        except BaseException as fault:
            first_says(f"{type(fault).__name__}: {fault}")
            raise
        first_says("")
        return first_says(made)
    if fault_of_first := first_says(""):
        raise WorldError("the first process", expected="it to go on", found=fault_of_first, fix="Mend what it says.")
    said: Any = first_says(None)
    found: Value = said
    return found


def agreed(make: Callable[[], Value]) -> Value:
    """Let every rank make something of its own, and go on only where all of them could.

    Raises:
        WorldError: Another rank could not, or is gone; the message names it. Where this one could not, its own fault.
    """
    fault: BaseException | None = None
    made: list[Value] = []
    try:
        made.append(make())
    except BaseException as found:
        fault = found
    try:
        told = gathered("" if fault is None else f"{type(fault).__name__}: {fault}")
    except WorldError as lost:
        if fault is None:
            raise
        raise fault from lost
    if fault is not None:
        raise fault
    if any(told):
        first = next(place for place, said in enumerate(told) if said)
        raise WorldError(f"rank {first}", expected="it to go on", found=told[first], fix="Mend what it says.")
    return made[0]


def wait() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        distributed.barrier()


@contextmanager
def _hearing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as lost:
        raise WorldError(
            f"the other ranks, seen from rank {rank()} of {world()}",
            expected="to hear from all of them",
            found=str(lost).splitlines()[0],
            fix="Look for one that was killed or stopped; then start all of them again.",
        ) from lost


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device(value: Tensor) -> torch.device:
    """Where the backend can reduce: NCCL takes CUDA tensors alone."""
    if distributed.get_backend() == "nccl" and not value.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return value.device
