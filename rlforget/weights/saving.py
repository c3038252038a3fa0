"""Writing checkpoints: one that is like another, with some or all tensors replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch

from rlforget.errors import LayoutError, OutputError
from rlforget.weights.atomic import new_file, new_folder
from rlforget.weights.checkpoint import SINGLE_FILE, CheckpointWeights
from rlforget.weights.layout import pair_up
from rlforget.weights.opening import open_weights
from rlforget.weights.safetensors_file import copy_with, write_tensors
from rlforget.weights.source import WeightsLike

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


def save_checkpoint(
    path: str | PathLike[str],
    weights: WeightsLike,
    *,
    like: str | PathLike[str] | None = None,
    force: bool = False,
) -> None:
    """Write weights as a checkpoint, whole or not at all.

    Args:
        path: The folder to create, or the file where `like` is a file.
        weights: What to write. Names may differ from those of `like` by ties only.
        like: A checkpoint of the same tensors, whose shards, index, metadata and other top-level files (config,
            tokenizer) are taken over; weights in other formats and sub-folders are not. Without it the folder holds a
            single `model.safetensors`.
        force: Replace a checkpoint that is at `path`.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
        NotACheckpointError: `like`, or a path given as `weights`, holds no readable checkpoint.
        LayoutError: The tensors of `weights` are not those of `like`.
    """
    source = open_weights(weights)
    if like is None:
        metas = {name: source.meta(name) for name in source.names()}
        with new_folder(Path(path), force=force) as folder, open(folder / SINGLE_FILE, "xb") as file:
            write_tensors(file, metas, source.tensor, {"format": "pt"})
        return
    pattern = CheckpointWeights(Path(like))
    pairs = pair_up(pattern, source)
    name_in_source = {pair.before: pair.after for pair in pairs}
    if len(name_in_source) < len(pairs):
        raise LayoutError(
            source.description,
            expected=f"tensors tied as they are in {pattern.description}",
            found="separate tensors where it keeps one",
            fix="Tie them, or save like a checkpoint that holds both.",
        )
    save_like(Path(path), pattern, lambda name: source.tensor(name_in_source[name]), force=force)


def save_like(
    path: Path,
    pattern: CheckpointWeights,
    replacement: Callable[[str], torch.Tensor | None],
    *,
    force: bool = False,
) -> None:
    """Write `pattern` anew at `path`, byte for byte but for the tensors that `replacement` gives.

    Args:
        path: The folder to create, or the file where `pattern` is a file.
        pattern: The checkpoint to copy.
        replacement: Returns the new values of a tensor by its canonical name, or None to keep the old ones.
        force: Replace a checkpoint that is at `path`.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
    """
    if pattern.path.is_file():
        ((shard, header),) = pattern.shards.items()
        with new_file(path, force=force) as file:
            copy_with(shard, header, file, replacement)
        return
    _check_apart(path, pattern.path)
    with new_folder(path, force=force) as folder:
        for shard, header in pattern.shards.items():
            with open(folder / shard.name, "xb") as file:
                copy_with(shard, header, file, replacement)
        for other in pattern.path.iterdir():
            if other.is_file() and other.suffix not in _WEIGHT_SUFFIXES:
                shutil.copyfile(other, folder / other.name)


def _check_apart(path: Path, source: Path) -> None:
    """Refuse an output that would replace a folder in which its own source lies."""
    if path.resolve() in source.resolve().parents:
        raise OutputError(
            str(path),
            expected="a folder apart from the source",
            found=f"one that holds {source}",
            fix="Choose another path.",
        )
