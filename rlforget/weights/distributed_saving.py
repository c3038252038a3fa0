"""Writing folders of torch.distributed.checkpoint, by torch's own engine, in memory that does not follow the model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import new_folder
from rlforget.weights.distributed_metadata import METADATA_FILE
from rlforget.weights.layout import TensorMeta
from rlforget.weights.saving import Check, checked_parts
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import bits_dtype

_CHUNK_BYTES = 64 << 20
"""Torch's writer holds some chunks at a time, so tensors are cut into such of this size."""


def write_distributed(
    path: Path,
    source: Weights,
    names: Mapping[str, str],
    prefix: tuple[str, ...],
    files: Mapping[str, Path | bytes],
    *,
    check: Check | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write weights as a folder of torch.distributed.checkpoint, whole or not at all, from this process alone.

    `torch.distributed.checkpoint.load` reads it on any number of ranks.

    Args:
        path: The folder to create.
        source: The weights.
        names: {name in the folder: name in `source`}.
        prefix: Under which keys of nested dicts they are saved.
        files: The other files to write, from a path or from bytes.
        check: What the tensors must be; nothing appears at `path` where they are others.
        force: Replace a checkpoint that is at `path`.
        progress: Told how many coordinates were written.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
        RlforgetError: What `check` says.
    """
    total, done = sum(source.meta(name).numel for name in names.values()), 0
    first = {of: name for name, of in reversed(list(names.items()))}
    again = {name: of for name, of in names.items() if first[of] != name}  # tied ones, by their further names
    names = {name: of for name, of in names.items() if name not in again} | again

    def parts() -> Iterator[Tensor]:
        nonlocal done
        once = [of for name, of in names.items() if name not in again]
        for bits in chain(checked_parts(source, once, check), checked_parts(source, list(again.values()), None)):
            done += bits.numel()
            if progress is not None:
                progress(done, total)
            yield bits

    metas = {".".join((*prefix, name)): source.meta(of) for name, of in names.items()}
    with new_folder(path, force=force, brings={METADATA_FILE, *files}) as folder:
        stream = parts()
        planner = _Planner(metas, _Taker(stream).take)
        with warnings.catch_warnings(), _own_faults():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            save(_nested(prefix, names, metas), storage_writer=_Writer(folder), planner=planner, no_dist=True)
        for _ in stream:  # what is left of it: its checks
            raise AssertionError("torch.distributed.checkpoint left out some values")
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)


class _Planner(DefaultSavePlanner):
    """Plans chunks of bounded size, and makes each when it is its turn to be written."""

    def __init__(self, metas: Mapping[str, TensorMeta], take: Callable[[int, torch.dtype], Tensor]) -> None:
        super().__init__()
        self._metas, self._take = metas, take

    def create_local_plan(self) -> SavePlan:
        items = [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties(meta.dtype), torch.Size(meta.shape)),
            )
            for name, meta in self._metas.items()
            for chunk in _chunks(meta)
        ]
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.tensor_data is not None  # every item is a tensor
        sizes, dtype = write_item.tensor_data.chunk.sizes, write_item.tensor_data.properties.dtype
        return self._take(sizes.numel(), bits_dtype(dtype)).view(dtype).view(sizes)


class _Writer(FileSystemWriter):
    """Writes each chunk into a file of its own, one after another: of those of one file torch holds all."""

    def __init__(self, folder: Path) -> None:
        # The folder is synced as a whole; nothing is copied ahead.
        super().__init__(folder, single_file_per_rank=False, sync_files=False, per_thread_copy_ahead=0)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()  # by default a draft's path and an id drawn by chance: no two saves would be equal


class _Taker:
    """Cuts a stream of ranges anew."""

    def __init__(self, stream: Iterator[Tensor]) -> None:
        self._stream, self._rest = stream, torch.empty(0)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return the next values, which are of one tensor."""
        taken, filled = torch.empty(count, dtype=dtype), 0
        while filled < count:
            if not self._rest.numel():
                self._rest = next(self._stream)
            part = self._rest[: count - filled]
            taken[filled : filled + part.numel()] = part
            self._rest = self._rest[part.numel() :]
            filled += part.numel()
        return taken


@contextmanager
def _own_faults() -> Iterator[None]:
    """Raise what went wrong itself, where torch tells on which rank it did."""
    try:
        yield
    except CheckpointException as told:
        raise next(iter(told.failures.values()))[0] from told


def _chunks(meta: TensorMeta) -> Iterator[ChunkStorageMetadata]:
    """Cut a tensor into blocks that lie together, in order."""
    most = max(1, _CHUNK_BYTES // meta.dtype.itemsize)
    axis = next((axis for axis in range(len(meta.shape)) if prod(meta.shape[axis + 1 :]) <= most), None)
    if axis is None or meta.numel <= most:
        yield ChunkStorageMetadata(torch.Size([0] * len(meta.shape)), torch.Size(meta.shape))
        return
    rows = most // prod(meta.shape[axis + 1 :])
    outer, inner = meta.shape[:axis], meta.shape[axis + 1 :]
    for place in product(*map(range, outer)):
        for row in range(0, meta.shape[axis], rows):
            sizes = (*(1 for _ in outer), min(rows, meta.shape[axis] - row), *inner)
            offsets = (*place, row, *(0 for _ in inner))
            yield ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def _nested(prefix: tuple[str, ...], names: Mapping[str, str], metas: Mapping[str, TensorMeta]) -> dict[str, Any]:
    """Return the state dict as the planner is to see it, without values."""
    found: dict[str, Any] = {
        name: torch.empty(meta.shape, dtype=meta.dtype, device="meta")
        for name, meta in zip(names, metas.values(), strict=True)
    }
    for key in reversed(prefix):
        found = {key: found}
    return found
