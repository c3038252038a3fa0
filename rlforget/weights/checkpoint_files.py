"""Which files make up a checkpoint: its shards, their index, and the others that go along with them."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

from rlforget.errors import NotACheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DELTA_SUFFIX = ".delta.safetensors"
"""Files of this suffix are no weights, though safetensors."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = frozenset({".safetensors", *_PICKLES, ".h5", ".msgpack", ".gguf", ".onnx", ".distcp"})
"""Suffixes of files that hold weights, in this format or another."""


def is_companion(name: str) -> bool:
    """Whether a file of this name in a checkpoint folder goes along with the weights: neither weights nor hidden."""
    return not (name.startswith(".") or name == INDEX_FILE or PurePath(name).suffix in WEIGHT_SUFFIXES)


def companions(folder: Path) -> dict[str, Path]:
    """Return a checkpoint folder's top-level files that hold no weights, by name."""
    return {file.name: file for file in sorted(folder.iterdir()) if is_companion(file.name) and file.is_file()}


def shard_paths(path: Path) -> list[Path]:
    """Return the safetensors files that make up the checkpoint at `path`, a folder or one of them.

    Raises:
        NotACheckpointError: There is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise _not_a_checkpoint(path, "nothing there", "Check the path; models are not fetched by name.")
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    if (path / INDEX_FILE).is_file():
        return [path / shard for shard in sorted(set(weight_map(path / INDEX_FILE).values()))]
    files = sorted(file for file in path.glob("*.safetensors") if not file.name.endswith(DELTA_SUFFIX))
    if len(files) == 1:
        return files
    if any(file.match("shard-*-model-*") for file in files):
        found = "parts of tensors, which torch's HuggingFaceStorageWriter did not put together"
        fix = "Save with enable_consolidation=True, or as a folder of torch.distributed.checkpoint."
        raise _not_a_checkpoint(path, found, fix)
    if files:
        found = f"{len(files)} safetensors files and no {INDEX_FILE}"
        raise _not_a_checkpoint(path, found, "Give one of the files, or restore the index.")
    if next(path.glob("*.distcp"), None) is not None:
        fix = "Where safetensors are needed, as in place, write some first: save_checkpoint(OTHER_FOLDER, FOLDER)."
        raise _not_a_checkpoint(path, "a folder of torch.distributed.checkpoint, which is only written anew", fix)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _not_a_checkpoint(
            path, f"only {pickles[0]}", "Load the model and save_pretrained it: that is safetensors."
        )
    raise _not_a_checkpoint(path, "a folder without any", "Check the path.")


def weight_map(index: Path) -> dict[str, str]:
    """Return {tensor name: shard file name} of an index, whose shards must lie beside it."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names_files = all(isinstance(shard, str) and PurePath(shard).name == shard for shard in set(found.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise bad_index(index, f"{type(error).__name__}: {error}") from error
    if not found or not names_files:
        raise bad_index(index, "a weight_map that is empty or names something other than files beside it")
    result: dict[str, str] = found
    return result


def _not_a_checkpoint(path: Path, found: str, fix: str) -> NotACheckpointError:
    expected = f"a .safetensors file, or a folder with {SINGLE_FILE} or {INDEX_FILE}"
    return NotACheckpointError(str(path), expected=expected, found=found, fix=fix)


def bad_index(index: Path, found: str) -> NotACheckpointError:
    """Build the error for an index that is damaged, or disagrees with the shards."""
    expected = "an index that says which shard holds each tensor"
    return NotACheckpointError(str(index), expected=expected, found=found, fix="Fetch or save the checkpoint again.")
