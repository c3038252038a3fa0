"""Folders that torch.distributed.checkpoint writes, with tensors cut into any chunks."""

from __future__ import annotations

import dataclasses
import pickle
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

Block = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a chunk begins, and its sizes."""


def save(folder: Path, state: Mapping[str, Any], planner: DefaultSavePlanner | None = None, **settings: Any) -> Path:
    """Save a state dict as torch does, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(folder, **settings), planner=planner, no_dist=True)
    return folder


class ChunkPlanner(DefaultSavePlanner):
    """Saves every tensor in the chunks that `cut` says."""

    def __init__(self, cut: Callable[[str, torch.Size], list[Block]]) -> None:
        super().__init__()
        self._cut = cut

    def create_local_plan(self) -> SavePlan:
        whole = super().create_local_plan()
        items = [part for item in whole.items for part in self._parts(item)]
        self.plan = dataclasses.replace(whole, items=items)
        return self.plan

    def _parts(self, item: WriteItem) -> list[WriteItem]:
        if item.type == WriteItemType.BYTE_IO:
            return [item]
        name, data = item.index.fqn, item.tensor_data
        chunks = [ChunkStorageMetadata(*map(torch.Size, block)) for block in self._cut(name, data.size)]
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=dataclasses.replace(data, chunk=chunk),
            )
            for chunk in chunks
        ]

    def resolve_data(self, write_item: WriteItem) -> Any:
        found = super().resolve_data(write_item)
        if write_item.type == WriteItemType.BYTE_IO:
            return found
        chunk = write_item.tensor_data.chunk
        return found[tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))]

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn]


def cut_at_random(shape: tuple[int, ...], rng: random.Random, times: int) -> list[Block]:
    """Cut a tensor's block into two at random places, again and again."""
    blocks = [((0,) * len(shape), tuple(shape))]
    for _ in range(times):
        place, sizes = blocks.pop(rng.randrange(len(blocks)))
        axes = [axis for axis, size in enumerate(sizes) if size > 1]
        if not axes:
            blocks.append((place, sizes))
            continue
        axis = rng.choice(axes)
        first = rng.randrange(1, sizes[axis])
        for at, size in ((0, first), (first, sizes[axis] - first)):
            blocks.append(
                (
                    tuple(o + at * (a == axis) for a, o in enumerate(place)),
                    tuple(size if a == axis else s for a, s in enumerate(sizes)),
                )
            )
    rng.shuffle(blocks)
    return blocks


def edit_metadata(folder: Path, edit: Callable[[Metadata], None]) -> None:
    """Change what the folder says of itself."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
