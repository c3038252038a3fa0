"""Writing checkpoints: alone, or in the shape of another, range by range.

Where ranks split the work, the first one makes the files in their full size, all write ranges of them, and the first
one gives them their place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from os import PathLike
from pathlib import Path

import torch

from rlforget.counting import telling
from rlforget.errors import LayoutError, RlforgetError
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.atomic import cannot_write, new_file, new_folder
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.checkpoint_files import INDEX_FILE, SINGLE_FILE
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.distributed_metadata import MODEL
from rlforget.weights.gathering import first_reads
from rlforget.weights.layout import TensorMeta, pair_up
from rlforget.weights.opening import Checkpoint, open_checkpoint, open_weights
from rlforget.weights.raw_io import begin_writeback, write_fully
from rlforget.weights.replacing import check_apart
from rlforget.weights.safetensors_file import header_text
from rlforget.weights.source import CHUNK, Weights, WeightsLike
from rlforget.weights.split import from_first, from_parts, meet, part, stretch
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
    distributed: bool = False,
    force: bool = False,
) -> None:
    """Write weights as a checkpoint, whole or not at all.

    Args:
        path: The folder to create, or the file where `like` is a file.
        weights: What to write. Names may differ from those of `like` by ties only. Of weights that are spread over
            ranks, every rank calls this; the first writes, and asks the others for what they hold, range by range.
        like: A checkpoint of the same tensors, whose format, shards, index, metadata and other top-level files (config,
            tokenizer) are taken over; weights in other formats and sub-folders are not. Without it the folder holds a
            single `model.safetensors`, whose header notes ties as `safetensors.torch.save_model` does.
        distributed: Without `like`, write a folder of torch.distributed.checkpoint instead, whose state dict has the
            tensors in a part `model`, tied ones under each of their names.
        force: Replace a checkpoint that is at `path`.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written (read-only, disk full).
        NotACheckpointError: `like`, or a path given as `weights`, holds no readable checkpoint.
        LayoutError: The tensors of `weights` are not those of `like`.
    """
    source = open_weights(weights, shards=True)
    if source.sharding is not None:
        first_reads(source, lambda whole: save_checkpoint(path, whole, like=like, distributed=distributed, force=force))
        return
    if like is None and distributed:
        from rlforget.weights.distributed_saving import write_distributed  # torch's engine takes time to import

        names = {name: source.canonical(name) for name in source.all_names()}
        write_distributed(Path(path), source, names, (MODEL,), {}, force=force)
        return
    if like is None:
        own = {name: source.meta(name) for name in source.names()}
        with new_folder(Path(path), force=force) as folder:
            plan = _Planned(SINGLE_FILE, *header_text(own, {**source.aliases, "format": "pt"}))
            _fill([str(folder / SINGLE_FILE)], [plan], source, None, None)
        return
    pattern = open_checkpoint(Path(like))
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
    pattern: Checkpoint,
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

    Memory does not grow with the model: threads read ranges of the tensors ahead, and write them where they belong.

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
    if isinstance(pattern, DistributedWeights):
        from rlforget.weights.distributed_saving import write_distributed

        names = {one.name: one.source for one in placed}
        names |= {alias: names[name] for alias, name in (aliases or {}).items() if name in names}
        if path.resolve() != pattern.path.resolve():
            check_apart(path, [pattern.path])
        write = partial(write_distributed, check=check, force=force, progress=progress)
        # By the first rank alone, which then reads all of it: in a context where no work is split.
        from_first(lambda: Context().run(write, path, source, names, pattern.prefix, files))
        return
    by_shard = dict.fromkeys(pattern.shards, placed) if pattern.path.is_file() else _by_shard(pattern, placed)
    noted = pattern.aliases if aliases is None else aliases
    plans = [_planned(pattern, shard, here, source, noted) for shard, here in by_shard.items()]
    if part():
        with cannot_write(path):
            _fill(from_first(list), plans, source, check, progress)
        meet()
        return
    if pattern.path.is_file():
        with new_file(path, force=force) as file:
            _fill(from_first(lambda: [str(file.name)]), plans, source, check, progress)
        meet()
        return
    if path.resolve() != pattern.path.resolve():  # a checkpoint may take its own place
        check_apart(path, [pattern.path, *pattern.shards])
    brings = {plan.file for plan in plans} | {*files, INDEX_FILE}
    with new_folder(path, force=force, brings=brings) as folder:
        _fill(from_first(lambda: [str(folder / plan.file) for plan in plans]), plans, source, check, progress)
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        if (pattern.path / INDEX_FILE).is_file():
            _write_index(folder, pattern.path / INDEX_FILE, by_shard, source)
    meet()


@dataclass(frozen=True)
class _Planned:
    """A file to be written.

    Attributes:
        file: Its name.
        header: Its first bytes.
        order: What follows them, one after another: tensors, as the weights that are written call them.
    """

    file: str
    header: bytes
    order: list[str]


def _planned(
    pattern: CheckpointWeights,
    shard: Path,
    here: Sequence[Placed],
    source: Weights,
    aliases: Mapping[str, str],
) -> _Planned:
    text, order = _header(pattern, shard, {one.name: source.meta(one.source) for one in here}, aliases)
    source_of = {one.name: one.source for one in here}
    return _Planned(shard.name, text, [source_of[name] for name in order])


def _by_shard(pattern: CheckpointWeights, placed: Sequence[Placed]) -> dict[Path, Sequence[Placed]]:
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


def _fill(
    paths: Sequence[str], plans: Sequence[_Planned], source: Weights, check: Check | None, progress: Progress | None
) -> None:
    """Write files, or this rank's ranges of them."""
    places: dict[str, tuple[int, int]] = {}  # where each tensor goes: the number of its file, and its first byte there
    for number, plan in enumerate(plans):
        sizes = [_nbytes(source.meta(name)) for name in plan.order]
        *starts, end = accumulate(sizes, initial=len(plan.header))
        places |= {name: (number, start) for name, start in zip(plan.order, starts, strict=True)}
        if not part():
            with open(paths[number], "wb") as file:
                file.write(plan.header)
                file.truncate(end)
    meet()
    names = [name for plan in plans for name in plan.order]
    total = sum(one.stop - one.start for one in own_ranges(source, names))
    done = 0
    with _opened(paths) as descriptors:

        def write(one: Range, bits: torch.Tensor) -> None:
            number, start = places[one.name]
            start += one.start * bits.element_size()
            write_fully(descriptors[number], bits.numpy().view("u1").data, start)
            begin_writeback(descriptors[number], start, bits.nbytes)

        # Closed before the files are: no thread may write by the number of a descriptor that something else has got.
        with closing(checked_parts(source, names, check, write)) as parts:
            for bits in parts:
                done += bits.numel()
                if progress is not None:
                    progress(done, total)
        if part():  # the first one syncs all that is there, but on another machine that is not all yet
            for descriptor in descriptors:
                os.fsync(descriptor)
    meet()


@contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[int]]:
    with ExitStack() as held:
        descriptors = []
        for path in paths:
            descriptors.append(os.open(path, os.O_WRONLY))
            held.callback(os.close, descriptors[-1])
        yield descriptors


@dataclass(frozen=True)
class Range:
    """Coordinates [start, stop) of a tensor."""

    name: str
    start: int
    stop: int


def own_ranges(source: Weights, names: Sequence[str]) -> list[Range]:
    """Return the ranges of tensors, in order, that this process reads: all, unless ranks split the work."""
    ranges = []
    for name in names:
        numel = source.meta(name).numel
        ranges += [Range(name, start, min(start + CHUNK, numel)) for start in range(0, numel, CHUNK)]
    return ranges[stretch([(one.stop - one.start) * source.meta(one.name).dtype.itemsize for one in ranges])]


def checked_parts(
    source: Weights,
    names: Sequence[str],
    check: Check | None,
    write: Callable[[Range, torch.Tensor], None] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """Yield the bits of tensors by `own_ranges`, in order, read ahead by threads; check the tensors on the way.

    Args:
        source: The tensors.
        names: Which of them.
        check: What they must be.
        write: Told the bits of each range on the thread that read them: before the tensor's check, and in any order.

    Raises:
        RlforgetError: What `check` says of a tensor that is another.
    """
    expected = {} if check is None else check.lanes

    def read(one: Range) -> tuple[Range, torch.Tensor, list[int]]:
        bits = source.bits(one.name, one.start, one.stop)
        if write is not None:
            write(one, bits)
        lanes: list[int] = fingerprint(bits, one.start).tolist() if one.name in expected else []
        return one, bits, lanes

    def hold(name: str, lanes: Sequence[int]) -> None:
        if check is not None and any((a - b) % 2**64 for a, b in zip(lanes, expected[name], strict=True)):
            raise check.fault(name)

    # Coordinates and lanes so far, of tensors of which ranges are still to come, here or on another rank.
    sums: dict[str, list[int]] = {}
    with closing(map_ahead(read, own_ranges(source, names))) as ranges:
        for one, bits, lanes in ranges:
            yield bits
            if lanes:
                _add(sums, one.name, [one.stop - one.start, *lanes])
                if sums[one.name][0] == source.meta(one.name).numel:
                    hold(one.name, sums.pop(one.name)[1:])
    left: dict[str, list[int]] = {name: [0, 0, 0] for name in expected if not source.meta(name).numel}
    for told in from_parts(sums):
        for name, some in told.items():
            _add(left, name, some)
    for name, (_, *lanes) in left.items():
        hold(name, lanes)


def _add(sums: dict[str, list[int]], name: str, more: list[int]) -> None:
    sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0]), more, strict=True)]


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
