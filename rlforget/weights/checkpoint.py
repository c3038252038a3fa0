"""Checkpoints on disk: a `.safetensors` file, or a folder with one such file or with shards and an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open

from rlforget.errors import NotACheckpointError
from rlforget.weights.buffers import buffer
from rlforget.weights.in_place import recover
from rlforget.weights.safetensors_file import Header, read_header
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import bits_dtype

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DELTA_SUFFIX = ".delta.safetensors"
"""Files of this suffix are no weights, though safetensors."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"})
"""Suffixes of files that hold weights, in this format or another."""


class CheckpointWeights(Weights):
    """The memory-mapped tensors of a checkpoint.

    Args:
        path: A `.safetensors` file or a checkpoint folder. In a folder `model.safetensors` goes before an index, as it
            does for transformers; a file under another name, a PEFT adapter's for one, is taken where it is the only
            one.
        recovered: Whether an in-place write that was cut short is taken back first; see `in_place.recover`.

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
        self.shards: Mapping[Path, Header] = {shard: read_header(shard) for shard in _shard_paths(path)}
        self._shard_of = _owners(path, self.shards)
        entries = {name: entry for header in self.shards.values() for name, entry in header.entries.items()}
        super().__init__(
            description=str(path),
            metas={name: entries[name].meta for name in sorted(entries, key=_natural_order)},
            aliases=_dropped_names(self.shards.values(), entries),
        )
        self._handles: dict[Path, Any] = {}
        self._descriptors: dict[Path, int] = {}
        self._opening = Lock()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, memory-mapped and to be treated as read-only; aliases are accepted.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        name = self.canonical(name)
        shard = self._shard_of[name]
        if shard not in self._handles:
            self._handles[shard] = safe_open(shard, framework="pt", device="cpu")
        tensor: torch.Tensor = self._handles[shard].get_tensor(name)
        return tensor

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
            _read_fully(self._descriptor(shard), out.numpy().view("uint8").data, place, shard)
        return out

    def files(self) -> Mapping[str, Path] | None:
        """Return the folder's top-level files that hold no weights, by name; None of a single file."""
        if not self.path.is_dir():
            return None
        found = sorted(self.path.iterdir())
        return {file.name: file for file in found if is_companion(file.name) and file.is_file()}

    def _descriptor(self, shard: Path) -> int:
        with self._opening:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(shard, os.O_RDONLY)
            return self._descriptors[shard]

    def __del__(self) -> None:
        """Close the files that `bits` opened."""
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def is_companion(name: str) -> bool:
    """Whether a file of this name in a checkpoint folder goes along with the weights: neither weights nor hidden."""
    return not (name.startswith(".") or name == INDEX_FILE or PurePath(name).suffix in WEIGHT_SUFFIXES)


def _read_fully(descriptor: int, buffer: memoryview, place: int, shard: Path) -> None:
    """Fill `buffer` from `place` on; one read takes 2 GiB at most, and may always take less."""
    while buffer:
        count = os.preadv(descriptor, [buffer], place)
        if count == 0:
            fix = "Fetch or write the file again."
            raise NotACheckpointError(str(shard), expected="a whole safetensors file", found="an early end", fix=fix)
        buffer, place = buffer[count:], place + count


def _shard_paths(path: Path) -> list[Path]:
    """Return the safetensors files that make up the checkpoint."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise _not_a_checkpoint(path, "nothing there", "Check the path; models are not fetched by name.")
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    if (path / INDEX_FILE).is_file():
        return [path / shard for shard in sorted(set(_weight_map(path / INDEX_FILE).values()))]
    files = sorted(file for file in path.glob("*.safetensors") if not file.name.endswith(DELTA_SUFFIX))
    if len(files) == 1:
        return files
    if files:
        found = f"{len(files)} safetensors files and no {INDEX_FILE}"
        raise _not_a_checkpoint(path, found, "Give one of the files, or restore the index.")
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _not_a_checkpoint(
            path, f"only {pickles[0]}", "Load the model and save_pretrained it: that is safetensors."
        )
    raise _not_a_checkpoint(path, "a folder without any", "Check the path.")


def _weight_map(index: Path) -> dict[str, str]:
    """Return {tensor name: shard file name} of an index, whose shards must lie beside it."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names_files = all(isinstance(shard, str) and PurePath(shard).name == shard for shard in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_index(index, f"{type(error).__name__}: {error}") from error
    if not weight_map or not names_files:
        raise _bad_index(index, "a weight_map that is empty or names something other than files beside it")
    result: dict[str, str] = weight_map
    return result


def _owners(path: Path, shards: Mapping[Path, Header]) -> dict[str, Path]:
    """Return {tensor name: its shard}, after holding an index against what the shards hold."""
    owners: dict[str, Path] = {}
    for shard, header in shards.items():
        for name in header.entries:
            if name in owners:
                raise _bad_index(path / INDEX_FILE, f"{name!r} in {owners[name].name} and in {shard.name}")
            owners[name] = shard
    if path.is_dir() and not (path / SINGLE_FILE).is_file() and (path / INDEX_FILE).is_file():
        index = _weight_map(path / INDEX_FILE)
        for name in index.keys() | owners.keys():
            if name not in owners or index.get(name) != owners[name].name:
                where = owners[name].name if name in owners else "no shard"
                raise _bad_index(path / INDEX_FILE, f"{name!r} in {where}, where the index says {index.get(name)}")
    return owners


def _natural_order(name: str) -> list[tuple[int, str]]:
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


def _not_a_checkpoint(path: Path, found: str, fix: str) -> NotACheckpointError:
    expected = f"a .safetensors file, or a folder with {SINGLE_FILE} or {INDEX_FILE}"
    return NotACheckpointError(str(path), expected=expected, found=found, fix=fix)


def _bad_index(index: Path, found: str) -> NotACheckpointError:
    expected = "an index that says which shard holds each tensor"
    return NotACheckpointError(str(index), expected=expected, found=found, fix="Fetch or save the checkpoint again.")
