"""Runs of items that one launch of an operator, or one start of threads, takes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def copied(tensor: torch.Tensor) -> int:
    """Elements that an operator copies of a tensor before it writes there: all, where they do not lie in order."""
    return 0 if tensor.is_contiguous() else tensor.numel()


def batches(
    items: Iterable[T], size: Callable[[T], int], most: int, kind: Callable[[T], object] = lambda _: None
) -> Iterator[list[T]]:
    """Yield runs of items, in order, that are of one kind and of `most` in size together, or of one that is larger.

    Args:
        items: They are taken from here as their run needs them.
        size: Of an item, at least 0.
        most: Of a run.
        kind: What all items of a run must have equal, e.g. the device.
    """
    batch: list[T] = []
    room = most
    for item in items:
        taken = size(item)
        if batch and (taken > room or kind(item) != kind(batch[0])):
            yield batch
            batch, room = [], most
        batch.append(item)
        room -= taken
    if batch:
        yield batch
