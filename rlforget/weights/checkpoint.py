"""Checkpoints on disk: a `.safetensors` file, or a folder with one such file or with shards and an index."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from rlforget.errors import NotACheckpointError
from rlforget.weights.buffers import buffer
from rlforget.weights.checkpoint_files import INDEX_FILE, SINGLE_FILE, bad_index, companions, shard_paths, weight_map
from rlforget.weights.raw_io import read_fully
from rlforget.weights.recovering import recover
from rlforget.weights.safetensors_file import Header, read_header
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import bits_dtype


class CheckpointWeights(Weights):
    """The memory-mapped tensors of a checkpoint.

    Args:
        path: A `.safetensors` file or a checkpoint folder. In a folder `model.safetensors` goes before an index, as it
            does for transformers; a file under another name, a PEFT adapter's for one, is taken where it is the only
            one.
        recovered: Whether an in-place write that was cut short is taken back first; see `recovering.recover`.

    Raises:
        NotACheckpointError: There is no readable checkpoint at `path`, or its index disagrees with its shards.
        BusyError: Another process is writing it in place.
        UnfinishedWriteError: A write that was cut short cannot be taken back here.
        JournalError: The record of one is damaged.
    """

    def __init__(self, path: Path, *, recovered: bool = True) -> None:
        if recovered:
            recover(path)
        self.path = path
        self.shards: Mapping[Path, Header] = {shard: read_header(shard) for shard in shard_paths(path)}
        self._shard_of = _owners(path, self.shards)
        entries = {name: entry for header in self.shards.values() for name, entry in header.entries.items()}
        super().__init__(
            description=str(path),
            metas={name: entries[name].meta for name in sorted(entries, key=natural_order)},
            aliases=_dropped_names(self.shards.values(), entries),
        )
        self._maps: dict[Path, mmap.mmap] = {}
        self._descriptors: dict[Path, int] = {}
        self._opening = Lock()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, memory-mapped and to be treated as read-only; aliases are accepted.

        Raises:
            UnknownNameError: There is no such tensor.
            NotACheckpointError: The file ends before its header says.
        """
        name = self.canonical(name)
        shard, meta = self._shard_of[name], self.meta(name)
        if not meta.numel:
            return torch.empty(meta.shape, dtype=meta.dtype)
        try:
            if shard not in self._maps:
                with open(shard, "rb") as file:
                    # Private and writable, so that torch takes it; nobody writes.
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            start = self.shards[shard].entries[name].start
            flat = torch.frombuffer(self._maps[shard], dtype=meta.dtype, count=meta.numel, offset=start)
        except (FileNotFoundError, ValueError) as error:  # what else a system refuses is no fault of the file
            raise _not_whole(shard, error) from error
        return flat.view(meta.shape)

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read the stored bits of a range from the file; see `Weights.bits`."""
        name = self.canonical(name)
        shard, meta = self._shard_of[name], self.meta(name)
        width = meta.dtype.itemsize
        stop = meta.numel if stop is None else stop
        if out is None:
            out = buffer(stop - start, bits_dtype(meta.dtype))
        if stop > start:
            place = self.shards[shard].entries[name].start + start * width
            try:
                read_fully(self._descriptor(shard), out.numpy().view("uint8").data, place)
            except OSError as error:
                raise _not_whole(shard, error) from error
        return out

    def files(self) -> Mapping[str, Path] | None:
        """Return the folder's top-level files that hold no weights, by name; None of a single file."""
        if not self.path.is_dir():
            return None
        return companions(self.path)

    def _descriptor(self, shard: Path) -> int:
        with self._opening:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(shard, os.O_RDONLY)
            return self._descriptors[shard]

    def __del__(self) -> None:
        """Close the files that `bits` opened."""
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _owners(path: Path, shards: Mapping[Path, Header]) -> dict[str, Path]:
    """Return {tensor name: its shard}, after holding an index against what the shards hold."""
    owners: dict[str, Path] = {}
    for shard, header in shards.items():
        for name in header.entries:
            if name in owners:
                raise bad_index(path / INDEX_FILE, f"{name!r} in {owners[name].name} and in {shard.name}")
            owners[name] = shard
    if path.is_dir() and not (path / SINGLE_FILE).is_file() and (path / INDEX_FILE).is_file():
        index = weight_map(path / INDEX_FILE)
        files = {shard: shard.name for shard in shards}
        held = {name: files[shard] for name, shard in owners.items()}
        for name in index.keys() | held.keys():
            if index.get(name) != held.get(name):
                where = held.get(name, "no shard")
                raise bad_index(path / INDEX_FILE, f"{name!r} in {where}, where the index says {index.get(name)}")
    return owners


def _not_whole(shard: Path, error: Exception) -> NotACheckpointError:
    expected, fix = "a whole safetensors file", "Fetch or write the file again."
    return NotACheckpointError(str(shard), expected=expected, found=str(error), fix=fix)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort `layers.2` before `layers.10`, and everything else by its text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _dropped_names(headers: Iterable[Header], entries: Mapping[str, Any]) -> dict[str, str]:
    """Return the tied names that `safetensors.torch.save_model` left out, which it notes as {dropped: kept}."""
    return {
        name: kept
        for header in headers
        for name, kept in header.metadata.items()
        if name not in entries and kept in entries
    }
