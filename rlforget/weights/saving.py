"""Writing checkpoints: alone, or in the shape of another, range by range."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import torch

from rlforget.counting import telling
from rlforget.errors import LayoutError, RlforgetError
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.atomic import new_file, new_folder
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.checkpoint_files import INDEX_FILE, SINGLE_FILE
from rlforget.weights.layout import TensorMeta, pair_up
from rlforget.weights.opening import open_weights
from rlforget.weights.replacing import check_apart
from rlforget.weights.safetensors_file import header_text
from rlforget.weights.source import CHUNK, Weights, WeightsLike
from rlforget_kernels.fingerprint import fingerprint


@dataclass(frozen=True)
class Placed:
    """A tensor of a checkpoint to be written.

    Attributes:
        name: Its name there.
        source: Its name in the weights that are written.
        like: Its name in the checkpoint whose shape is taken over; None: it is new.
    """

    name: str
    source: str
    like: str | None


@dataclass(frozen=True)
class Check:
    """What the tensors written must be.

    Attributes:
        lanes: {name in the weights that are written: its fingerprint}, for those that are checked.
        fault: Builds the error for a tensor, by that name, that is another.
    """

    lanes: Mapping[str, tuple[int, int]]
    fault: Callable[[str], RlforgetError]


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
            single `model.safetensors`, whose header notes ties as `safetensors.torch.save_model` does.
        force: Replace a checkpoint that is at `path`.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
        NotACheckpointError: `like`, or a path given as `weights`, holds no readable checkpoint.
        LayoutError: The tensors of `weights` are not those of `like`.
    """
    source = open_weights(weights)
    if like is None:
        own = {name: source.meta(name) for name in source.names()}
        with new_folder(Path(path), force=force) as folder, open(folder / SINGLE_FILE, "xb") as file:
            text, order = header_text(own, {**source.aliases, "format": "pt"})
            _write(file, text, order, source, None, lambda count: None)
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
    placed = [Placed(name, name_in_source[name], name) for name in pattern.names()]
    save_like(Path(path), pattern, source, placed, pattern.files() or {}, force=force)


def save_like(
    path: Path,
    pattern: CheckpointWeights,
    source: Weights,
    placed: Sequence[Placed],
    files: Mapping[str, Path | bytes],
    *,
    aliases: Mapping[str, str] | None = None,
    check: Check | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write weights in the shape of the checkpoint `pattern`: its shards, and their headers where they still fit.

    Memory does not grow with the model: ranges of the tensors are read ahead by threads and written in order.

    Args:
        path: The folder to create, or the file where `pattern` is a file.
        pattern: The checkpoint whose shape is taken over.
        source: The weights to write.
        placed: The tensors to write. A new one goes into the last shard.
        files: The other files to write, from a path or from bytes; nothing where `pattern` is a file.
        aliases: Further names of tied tensors, with the names they stand for there. Those that the pattern does not
            note the same way are noted in the header of the tensor's file. None: as the pattern has them.
        check: What the tensors must be; nothing appears at `path` where they are others.
        force: Replace a checkpoint that is at `path`.
        progress: Told how many coordinates were written.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
        RlforgetError: What `check` says.
    """
    progress = progress or telling("coordinates")
    total, done = sum(source.meta(one.source).numel for one in placed), 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def write(file: BinaryIO, shard: Path, here: Sequence[Placed]) -> None:
        metas = {one.name: source.meta(one.source) for one in here}
        text, order = _header(pattern, shard, metas, pattern.aliases if aliases is None else aliases)
        source_of = {one.name: one.source for one in here}
        _write(file, text, [source_of[name] for name in order], source, check, wrote)

    if pattern.path.is_file():
        (shard,) = pattern.shards
        with new_file(path, force=force) as file:
            write(file, shard, placed)
        return
    if path.resolve() != pattern.path.resolve():  # a checkpoint may take its own place
        check_apart(path, [pattern.path, *pattern.shards])
    by_shard = _by_shard(pattern, placed)
    brings = {shard.name for shard in by_shard} | {*files, INDEX_FILE}
    with new_folder(path, force=force, brings=brings) as folder:
        for shard, here in by_shard.items():
            with open(folder / shard.name, "xb") as file:
                write(file, shard, here)
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        if (pattern.path / INDEX_FILE).is_file():
            _write_index(folder, pattern.path / INDEX_FILE, by_shard, source)


def _by_shard(pattern: CheckpointWeights, placed: Sequence[Placed]) -> dict[Path, list[Placed]]:
    """Return the tensors of each shard; a shard that would be empty is left out, unless all are."""
    home = {name: shard for shard, header in pattern.shards.items() for name in header.entries}
    last = list(pattern.shards)[-1]
    found: dict[Path, list[Placed]] = {shard: [] for shard in pattern.shards}
    for one in placed:
        found[last if one.like is None else home[one.like]].append(one)
    return {shard: here for shard, here in found.items() if here or len(found) == 1}


def _header(
    pattern: CheckpointWeights, shard: Path, metas: Mapping[str, TensorMeta], aliases: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """Return a file's header and its tensors in order: the pattern's own bytes where they still say the truth."""
    header = pattern.shards[shard]
    new = {name: kept for name, kept in aliases.items() if kept in metas and pattern.aliases.get(name) != kept}
    if not new and metas == {name: entry.meta for name, entry in header.entries.items()}:
        with open(shard, "rb") as original:
            return original.read(header.data_start), list(header.entries)
    known = {
        name: text
        for name, text in header.metadata.items()
        if pattern.aliases.get(name) != text or aliases.get(name) == text
    }
    return header_text(metas, known | new)


def _write(
    file: BinaryIO,
    text: bytes,
    order: Sequence[str],
    source: Weights,
    check: Check | None,
    wrote: Callable[[int], None],
) -> None:
    """Write a file's header, and after it the tensors of `source` in the given order."""
    file.write(text)
    for bits in checked_parts(source, order, check):
        file.write(bits.numpy().data)
        wrote(bits.numel())


def checked_parts(source: Weights, names: Sequence[str], check: Check | None) -> Iterator[torch.Tensor]:
    """Yield the bits of tensors range by range, in order, read ahead by threads; check them at the end.

    Raises:
        RlforgetError: What `check` says of a tensor that is another.
    """
    lanes_of = {} if check is None else check.lanes

    def read(part: tuple[str, int, int]) -> tuple[str, torch.Tensor, list[int]]:
        name, start, stop = part
        bits = source.bits(name, start, stop)
        lanes: list[int] = fingerprint(bits, start).tolist() if name in lanes_of else []
        return name, bits, lanes

    found: dict[str, list[int]] = {}
    for name, bits, lanes in map_ahead(read, _parts(names, source)):
        yield bits
        if lanes:
            found[name] = [a + b for a, b in zip(found.get(name, (0, 0)), lanes, strict=True)]
    for name in names:
        expected = lanes_of.get(name)
        lanes = found.get(name, [0, 0])
        if check is not None and expected and any((a - b) % 2**64 for a, b in zip(lanes, expected, strict=True)):
            raise check.fault(name)


def _parts(order: Sequence[str], source: Weights) -> Iterator[tuple[str, int, int]]:
    for name in order:
        numel = source.meta(name).numel
        yield from ((name, start, min(start + CHUNK, numel)) for start in range(0, numel, CHUNK))


def _write_index(folder: Path, pattern: Path, by_shard: Mapping[Path, Sequence[Placed]], source: Weights) -> None:
    """Write the index of the shards: the pattern's own bytes where it still says the truth."""
    weight_map = {one.name: shard.name for shard, here in by_shard.items() for one in here}
    text = pattern.read_text(encoding="utf-8")
    index = json.loads(text)
    if index["weight_map"] != weight_map:
        total = sum(_nbytes(source.meta(one.source)) for here in by_shard.values() for one in here)
        index["metadata"] = {**index.get("metadata", {}), "total_size": total}
        index["weight_map"] = dict(sorted(weight_map.items()))
        text = json.dumps(index, indent=2) + "\n"
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")


def _nbytes(meta: TensorMeta) -> int:
    return meta.numel * meta.dtype.itemsize
