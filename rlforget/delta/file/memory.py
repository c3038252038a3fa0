"""Whole deltas in memory, to a file and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from rlforget.delta.delta import Delta
from rlforget.delta.file.reader import DeltaFile
from rlforget.delta.file.reader import Side as SideName
from rlforget.delta.file.sharded import hear, read_sharded, whole_pieces
from rlforget.delta.file.table import Entry, WholeEntry
from rlforget.delta.file.writer import Side, new_delta_file
from rlforget.delta.scan import PIECE, Piece
from rlforget.delta.tensor_delta import TensorDelta
from rlforget.delta.whole import FileDelta, WholeDelta
from rlforget.errors import DeltaFileError, LayoutError, WrongBaseError
from rlforget.weights import Layout, TensorMeta, Weights, WeightsLike, open_weights
from rlforget.weights.digest import lanes_of
from rlforget.weights.ranks import is_first
from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.fingerprint import fingerprint, fingerprint_after_patch

_ROOM = 384 << 20  # bytes of a delta in memory, however small its file is; with what decodes it, below 512 MiB
_MOST_EXPANSION = 96  # times the file's size: one bit for all that is known of a coordinate that changed


def save(delta: Delta, path: str | PathLike[str], *, self_contained: bool = False, force: bool = False) -> None:
    """Write a delta to `path`, whole or not at all; see `Delta.save`."""
    if delta.sharding is None:
        pieces = (piece for tensor in delta.values() for piece in pieces_of(tensor))
        _save(delta, pieces, path, self_contained=self_contained, force=force)
        return
    if not is_first():
        for _ in whole_pieces(delta):
            pass  # the first rank has it
    else:
        try:
            _save(delta, whole_pieces(delta), path, self_contained=self_contained, force=force)
        except BaseException:
            hear(going_on=False)
            raise
    hear(going_on=True)


def _save(
    delta: Delta, pieces: Iterable[Piece], path: str | PathLike[str], *, self_contained: bool, force: bool
) -> None:
    layout = Layout("the delta", {name: TensorMeta(t.dtype, t.shape) for name, t in delta.items()}, delta.aliases)
    with new_delta_file(
        path,
        layout,
        renamed=delta.renamed,
        metadata=delta.metadata,
        files=delta.files.values(),
        self_contained=self_contained,
        force=force,
    ) as writer:
        for piece in pieces:
            writer.add(piece)
        for whole in delta.whole.values():
            writer.whole(whole.name, *(None if side is None else Side.of(side) for side in (whole.before, whole.after)))


def pieces_of(tensor: TensorDelta) -> Iterator[Piece]:
    """Cut what changed in a tensor into pieces. The fingerprints of the whole tensor go with the first one."""
    starts = range(0, tensor.numel, PIECE)
    edges = torch.searchsorted(tensor.indices.long(), torch.tensor([*starts, tensor.numel])).tolist()
    lanes = tensor.fingerprint_before, tensor.fingerprint_after
    for number, start in enumerate(starts):
        inside = slice(edges[number], edges[number + 1])
        found = (tensor.indices[inside], tensor.before_bits[inside], tensor.after_bits[inside])
        stop = min(start + PIECE, tensor.numel)
        yield Piece(tensor.name, tensor.dtype, start, stop, *found, None, *(lanes if number == 0 else ((0, 0), (0, 0))))


def load(path: str | PathLike[str], base: WeightsLike | None = None, *, max_bytes: int | None = None) -> Delta:
    """Read a delta; see `Delta.load`."""
    return read(DeltaFile(path), None if base is None else open_weights(base, shards=True), max_bytes)


def read(file: DeltaFile, base: Weights | None, max_bytes: int | None = None) -> Delta:
    """Read all of a delta file into memory, and check all of it.

    Args:
        file: The file, opened.
        base: The weights at either end of the delta. Not needed, and not read, if the file is self-contained.
        max_bytes: How many bytes of memory the delta may take; None: as `Delta.load` says.

    Raises:
        DeltaFileError: A frame is damaged or forged; the file unpacks to far more than it is; or `base` is needed.
        WrongBaseError: A tensor of `base` is at neither end.
        LayoutError: `base` has other tensors.
    """
    _check_room(file, max(_ROOM, _MOST_EXPANSION * file.size) if max_bytes is None else max_bytes)
    if base is not None and base.sharding is not None:
        return read_sharded(file, base)
    if base is None and not file.self_contained and (file.changed or _gone(file)):
        raise file.needs_base("a file that holds the bits from before, or base=")
    source = None if file.self_contained else base
    return Delta(
        [_tensor(file, entry, source) for entry in file.tensors.values()],
        whole=[_whole(file, entry, source) for entry in file.whole.values()],
        files=[FileDelta(name, file.file_bytes(name, "before"), file.file_bytes(name, "after")) for name in file.files],
        renamed=file.renamed,
        aliases=file.aliases,
        metadata=file.metadata,
    )


def _gone(file: DeltaFile) -> bool:
    return any(entry.before is not None for entry in file.whole.values())


def _check_room(file: DeltaFile, most: int) -> None:
    """Refuse a file that takes more memory than it may: it must have been made to, unless it is said to be sound."""
    size = sum(e.changed * (index_dtype(e.meta.numel).itemsize + 2 * e.dtype.itemsize) for e in file.tensors.values())
    for entry in file.whole.values():
        travel = (entry.before if file.self_contained else None, entry.after)
        size += sum(meta.numel * meta.dtype.itemsize for meta in travel if meta is not None)
    size += sum((entry.before or 0) + (entry.after or 0) for entry in file.files.values())
    if size > most:
        raise DeltaFileError(
            str(file.path),
            expected=f"a delta of at most {most} bytes in memory, from a file of {file.size}",
            found=f"one of {size}",
            fix="If you trust the file, load it by Delta.load(…, max_bytes=…), or apply it to a checkpoint.",
        )


@dataclass(frozen=True)
class End:
    """Where a tensor of the base stands: its name there, and whether it is the one after."""

    name: str
    backward: bool


def end_of(file: DeltaFile, entry: Entry, base: Weights) -> End:
    """Tell by its fingerprint at which end a tensor of the base is.

    Raises:
        LayoutError: The base has no such tensor.
        WrongBaseError: It is at neither end.
    """
    names = [name for name in _names(file, entry.name) if name in base]
    fitting = [name for name in names if base.meta(name) == entry.meta]
    if not fitting:
        raise LayoutError(
            f"{base.description}, tensor {entry.name!r}",
            expected=str(entry.meta),
            found=str(base.meta(names[0])) if names else "no such tensor",
            fix="Give the weights at one of the ends of the delta.",
        )
    for name in fitting:
        lanes = lanes_of(base, name)
        if lanes in (entry.fingerprint_before, entry.fingerprint_after):
            return End(name, backward=lanes != entry.fingerprint_before)
    raise _wrong_base(file, base, entry.name)


def _names(file: DeltaFile, name: str) -> list[str]:
    """Return all that a tensor is called: before, after, and by its ties."""
    ties = [alias for alias, stands_for in file.aliases.items() if stands_for == name]
    return list(dict.fromkeys([name, file.name_after(name), *ties]))


def _wrong_base(file: DeltaFile, base: Weights, name: str) -> WrongBaseError:
    return WrongBaseError(
        f"{base.description}, tensor {name!r}",
        expected=f"the bits at either end of {file.path}",
        found="other bits, by their fingerprint",
        fix="Give the weights that the delta was made from, or those it leads to.",
    )


def _tensor(file: DeltaFile, entry: Entry, base: Weights | None) -> TensorDelta:
    bits = bits_dtype(entry.dtype)
    indices = torch.empty(entry.changed, dtype=index_dtype(entry.meta.numel))
    before, after = torch.empty(entry.changed, dtype=bits), torch.empty(entry.changed, dtype=bits)
    end = None if base is None or not entry.changed else end_of(file, entry, base)
    count = 0
    for start, stop in file.changed_ranges(entry.name) if entry.changed else ():
        held = None if base is None or end is None else base.bits(end.name, start, stop)
        found = file.patch(entry.name, start, stop).changes(held, backward=end is not None and end.backward)
        first, count = count, count + found[0].numel()
        if count > entry.changed:
            raise unfit(file, entry)
        for column, values in zip((indices, before, after), found, strict=True):
            column[first:count] = values
    lanes = fingerprint_after_patch(torch.tensor(entry.fingerprint_before), indices, before, after).tolist()
    if count != entry.changed or tuple(lanes) != entry.fingerprint_after:
        raise unfit(file, entry)
    return TensorDelta(
        entry.name,
        entry.dtype,
        entry.shape,
        indices,
        before,
        after,
        entry.fingerprint_before,
        entry.fingerprint_after,
    )


def unfit(file: DeltaFile, entry: Entry) -> DeltaFileError:
    """Build the error for a tensor whose changes do not fit its fingerprints."""
    return DeltaFileError(
        f"{file.path}, tensor {entry.name!r}",
        expected=f"{entry.changed} changes that fit its fingerprints",
        found="others",
        fix="Fetch the file again, or make the delta again.",
    )


def _whole(file: DeltaFile, entry: WholeEntry, base: Weights | None) -> WholeDelta:
    before, after = None, None
    if entry.after is not None:
        after = _checked(file, entry, "after", entry.after, file.whole_bits(entry.name, "after"))
    if entry.before is not None and base is None:
        before = _checked(file, entry, "before", entry.before, file.whole_bits(entry.name, "before"))
    elif entry.before is not None and base is not None:
        names = [name for name in _names(file, entry.name) if name in base and base.meta(name) == entry.before]
        if not names:
            raise file.needs_base(f"{entry.name!r} of the weights before, {entry.before}, in {base.description}")
        if lanes_of(base, names[0]) != entry.fingerprint_before:
            raise _wrong_base(file, base, entry.name)
        before = base.bits(names[0]).clone().view(entry.before.dtype).view(entry.before.shape)
    return WholeDelta(entry.name, before, after, entry.fingerprint_before, entry.fingerprint_after)


def _checked(file: DeltaFile, entry: WholeEntry, side: SideName, meta: TensorMeta, bits: Tensor) -> Tensor:
    expected = entry.fingerprint_before if side == "before" else entry.fingerprint_after
    if tuple(fingerprint(bits).tolist()) != expected:
        raise DeltaFileError(
            f"{file.path}, tensor {entry.name!r}",
            expected=f"bits {side} that fit their fingerprint",
            found="others",
            fix="Fetch the file again, or make the delta again.",
        )
    return bits.view(meta.dtype).view(meta.shape)
