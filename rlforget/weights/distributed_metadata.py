"""What a folder of torch.distributed.checkpoint says of itself, in its `.metadata` file.

That file is a pickle, as are the heads of the items: the one exception to the rule that nothing pickled is read, since
the format has no other place for names, shapes and offsets. They are read as plain data (`known_pickle`), and the
values without any pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from rlforget.errors import NotACheckpointError
from rlforget.weights.box import Box
from rlforget.weights.checkpoint_files import INDEX_FILE, SINGLE_FILE
from rlforget.weights.chunks import fault_in
from rlforget.weights.distributed_items import DTYPE_NAMES, Item, damaged, natural
from rlforget.weights.known_pickle import Record, read_pickle
from rlforget.weights.layout import DTYPES, TensorMeta

METADATA_FILE = ".metadata"
ITEM_SUFFIX = ".distcp"
MODEL = "model"
"""What a training's state dict calls the model's part by custom."""

_OPTIMIZERS = frozenset({"optimizer", "optim", "optimizers"})
_FOLDER = "torch.distributed.checkpoint"


class _Index(Record):
    pass


class _Tensor(Record):
    pass


_NAMES: Mapping[tuple[str, str], Any] = {
    **DTYPE_NAMES,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): Record,
    ("pathlib", "PosixPath"): Record,
    ("pathlib", "WindowsPath"): Record,
    ("pathlib._local", "PosixPath"): Record,
    ("pathlib._local", "WindowsPath"): Record,
    (f"{_FOLDER}.filesystem", "_StorageInfo"): Record,
    (f"{_FOLDER}.metadata", "BytesStorageMetadata"): Record,
    (f"{_FOLDER}.metadata", "ChunkStorageMetadata"): Record,
    (f"{_FOLDER}.metadata", "Metadata"): Record,
    (f"{_FOLDER}.metadata", "MetadataIndex"): _Index,
    (f"{_FOLDER}.metadata", "StorageMeta"): Record,
    (f"{_FOLDER}.metadata", "TensorProperties"): Record,
    (f"{_FOLDER}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_FOLDER}.metadata", "_MEM_FORMAT_ENCODING"): Record,
}
"""The names in what `FileSystemWriter` writes with torch's own planner."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the metadata tell of it.

    Attributes:
        meta: Its dtype and shape.
        items: What holds its values, each of them once.
    """

    meta: TensorMeta
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Contents:
    """What is in a folder.

    Attributes:
        prefix: Under which keys of nested dicts the model was saved; none where it was saved by itself.
        tensors: The model's tensors, by their names in it.
        left_out: The full names of everything else: an optimizer's tensors, and objects that are none.
    """

    prefix: tuple[str, ...]
    tensors: Mapping[str, Stored]
    left_out: tuple[str, ...]


def is_distributed(path: Path) -> bool:
    """Whether a path is a folder of torch.distributed.checkpoint, and no safetensors of the usual names are in it."""
    if not path.is_dir() or (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file():
        return False
    return (path / METADATA_FILE).is_file() or bool(item_files(path))


def item_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold items, sorted."""
    return sorted(folder.glob(f"*{ITEM_SUFFIX}"))


def read_contents(folder: Path) -> Contents:
    """Read the metadata of a folder; see `DistributedWeights` for which of it is the model.

    Raises:
        NotACheckpointError: They are damaged or missing, name what `FileSystemWriter` does not write, or tell of chunks
            that do not make up the tensors; or there is no model, or more than one.
    """
    path = folder / METADATA_FILE
    try:
        with open(path, "rb") as file:
            raw = read_pickle(file, str(path), _NAMES)
    except OSError as fault:
        found = f"{fault.strerror}: the save did not finish, or the file was not copied"
        raise damaged(str(path), f"the metadata beside the {ITEM_SUFFIX} files", found) from fault
    try:
        tensors, others = _entries(folder, raw.state)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as fault:
        expected, found = "the metadata that FileSystemWriter writes", f"{type(fault).__name__}: {fault}"
        raise damaged(str(path), expected, found) from fault
    prefix = _prefix(folder, tensors)
    chosen = {keys: stored for keys, stored in tensors.items() if _is_model(keys, prefix)}
    if not chosen:
        fix = "Give the folder that the model was saved in."
        raise NotACheckpointError(str(folder), expected="tensors of a model", found="none", fix=fix)
    named = {".".join(keys[len(prefix) :]): stored for keys, stored in chosen.items()}
    for name, stored in named.items():
        _check(f"{folder}, tensor {name!r}", stored)
    return Contents(prefix, named, tuple(sorted([*others, *(".".join(keys) for keys in tensors.keys() - chosen)])))


def _entries(folder: Path, found: Mapping[str, Any]) -> tuple[dict[tuple[str, ...], Stored], list[str]]:
    """Return the tensors by their path in the state dict that was saved, and the names of all that is no tensor."""
    places = {
        (key.state["fqn"], key.state.get("offset")): info.state
        for key, info in found["storage_data"].items()
        if type(key) is _Index
    }
    paths = found.get("planner_data") or {}
    sizes = {file.name: file.stat().st_size for file in item_files(folder)}
    tensors: dict[tuple[str, ...], Stored] = {}
    others = []
    for name, entry in found["state_dict_metadata"].items():
        if type(entry) is not _Tensor:
            others.append(str(name))
            continue
        told = entry.state
        dtype, shape = told["properties"].state[0], natural(told["size"])
        items = []
        for chunk in told["chunks"]:
            offsets, extent = natural(chunk.state["offsets"]), natural(chunk.state["sizes"])
            if len(offsets) != len(shape) or len(extent) != len(shape):
                raise ValueError(f"a chunk of {name!r} of another number of dimensions")
            box = Box(shape, offsets, extent)
            if box.numel:  # ranks beyond the rows of a small tensor hold nothing
                items.append(_item(folder, box, places[name, offsets], sizes))
        path = tuple(str(part) for part in paths.get(name, (name,)))
        tensors[path] = Stored(TensorMeta(dtype, shape), tuple(items))
    return tensors, others


def _item(folder: Path, box: Box, place: Mapping[str, Any], sizes: Mapping[str, int]) -> Item:
    file, (start, length) = place["relative_path"], natural((place["offset"], place["length"]))
    if place.get("transform_descriptors"):
        expected, fix = "items as torch.save writes them", "Save the checkpoint without extensions."
        found = f"transformed ones: {', '.join(place['transform_descriptors'])}"
        raise NotACheckpointError(str(folder / file), expected=expected, found=found, fix=fix)
    if PurePath(file).name != file:
        raise ValueError(f"a file {file!r} that is not in the folder")
    if start + length > sizes.get(file, -1):
        found = f"{sizes[file]:,}" if file in sizes else "no such file"
        raise damaged(str(folder / file), f"{start + length:,} bytes or more", found)
    return Item(box, folder / file, start, length)


def _prefix(folder: Path, paths: Mapping[tuple[str, ...], Stored]) -> tuple[str, ...]:
    found = {keys[: keys.index(MODEL) + 1] for keys in paths if MODEL in keys[:-1]}
    if len(found) > 1:
        named = ", ".join(sorted(".".join(keys) for keys in found))
        fix = "Save each in a folder of its own."
        raise NotACheckpointError(str(folder), expected=f"one part called {MODEL!r}", found=named, fix=fix)
    return next(iter(found), ())


def _is_model(keys: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
    if prefix:
        return keys[: len(prefix)] == prefix
    return len(keys) == 1 or keys[0] not in _OPTIMIZERS


def _check(what: str, stored: Stored) -> None:
    if stored.meta.dtype not in DTYPES:
        expected = f"a dtype among {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}"
        found, fix = str(stored.meta.dtype), "Convert the tensor to one of these."
        raise NotACheckpointError(what, expected=expected, found=found, fix=fix)
    fault = fault_in(stored.meta.shape, [item.box for item in stored.items])
    if fault is not None:
        raise damaged(what, "chunks that hold each value once", fault)
