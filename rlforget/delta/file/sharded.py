"""Deltas of models that are spread over ranks, to one file and from it: the same bytes as of the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rlforget.delta.delta import Delta
from rlforget.delta.file.reader import DeltaFile
from rlforget.delta.file.table import Entry
from rlforget.delta.scan import Piece
from rlforget.delta.sharded import led_on, not_kept
from rlforget.delta.sides import before_side
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.errors import DeltaFileError, WorldError, WrongBaseError
from rlforget.weights import Weights, pair_up
from rlforget.weights.box import Box
from rlforget.weights.digest import sharded_lanes
from rlforget.weights.ranks import agreed, first_hears, first_says, is_first
from rlforget_kernels.common.bits import as_bits, bits_dtype, index_dtype


def whole_pieces(delta: Delta) -> Iterator[Piece]:
    """Bring what changed to the first rank, piece by piece; every rank goes through all of them.

    Raises:
        WorldError: On the others, where the first could not go on: see `hear`.
    """
    from rlforget.delta.file.memory import pieces_of

    assert delta.sharding is not None
    for name, tensor in delta.items():
        for piece in pieces_of(tensor):
            hear(going_on=True)
            mine = piece if name in delta.sharding.counted else None
            told = first_hears(mine)
            yield _merged(piece, [one for one in told if one is not None]) if told else piece


def hear(*, going_on: bool) -> None:
    """Let the first rank tell the others whether it goes on.

    Raises:
        WorldError: On the others, where it does not.
    """
    if not first_says(going_on) and not is_first():
        raise WorldError("the first rank", expected="to write the file", found="it could not", fix="See what it says.")


def _merged(like: Piece, parts: list[Piece]) -> Piece:
    indices, order = torch.cat([part.indices for part in parts]).sort()
    before = torch.cat([part.before_bits for part in parts])[order]
    after = torch.cat([part.after_bits for part in parts])[order]
    return replace(like, indices=indices, before_bits=before, after_bits=after)


def read_sharded(file: DeltaFile, base: Weights) -> Delta:
    """Read what of a delta file lies on this rank. Every rank has to call this.

    Args:
        file: The file, opened.
        base: The weights at either end, spread over the ranks.

    Raises:
        DeltaFileError: A frame is damaged or forged.
        LayoutError: It is for other tensors, or changes names, shapes or dtypes.
        WrongBaseError: A tensor is at neither end.
    """
    assert base.sharding is not None
    if others := [*file.whole, *file.renamed]:
        raise not_kept(base, others)
    pairs = {
        pair.name: pair.after
        for pair in pair_up(before_side({e.name: e.meta for e in file.tensors.values()}, {}, file.aliases), base)
    }
    sharding = base.sharding.renamed(pairs)
    lanes = sharded_lanes(base)
    entries = list(file.tensors.values())
    tensors = agreed(
        lambda: [_tensor(file, entry, base, pairs[entry.name], lanes[pairs[entry.name]]) for entry in entries]
    )
    delta = Delta(led_on(tensors, sharding), aliases=file.aliases, metadata=file.metadata, sharding=sharding)
    for entry in entries:
        found = delta[entry.name].fingerprint_after, delta.counts[entry.name]
        if found != (entry.fingerprint_after, entry.changed):
            raise DeltaFileError(
                f"{file.path}, tensor {entry.name!r}",
                expected=f"{entry.changed} changes that fit its fingerprints",
                found="others",
                fix="Fetch the file again, or make the delta again.",
            )
    return delta


def _tensor(file: DeltaFile, entry: Entry, base: Weights, name: str, held: Fingerprint) -> TensorDelta:
    """Read the changes that lie here; whether all of them fit is told when every rank has."""
    if held not in (entry.fingerprint_before, entry.fingerprint_after):
        raise WrongBaseError(
            f"{base.description}, tensor {name!r}",
            expected=f"the bits at either end of {file.path}",
            found="other bits, by their fingerprint",
            fix="Give the weights that the delta was made from, or those it leads to.",
        )
    assert base.sharding is not None
    box, backward = base.sharding.boxes[name], held != entry.fingerprint_before
    columns: list[list[Tensor]] = [[], [], []]
    for start, stop in file.changed_ranges(entry.name) if entry.changed else ():
        known = None if file.self_contained else _range(as_bits(base.tensor(name)), box, start, stop)
        found = file.patch(entry.name, start, stop).changes(known, backward=backward and known is not None)
        mine = box.holds(found[0])
        for column, values in zip(columns, found, strict=True):
            column.append(values[mine])
    bits = bits_dtype(entry.dtype)
    empty = (torch.empty(0, dtype=dtype) for dtype in (index_dtype(entry.meta.numel), bits, bits))
    indices, before, after = (torch.cat([none, *column]) for none, column in zip(empty, columns, strict=True))
    lanes = entry.fingerprint_before, entry.fingerprint_after
    return TensorDelta(entry.name, entry.dtype, entry.shape, indices, before, after, *lanes)


def _range(block: Tensor, box: Box, start: int, stop: int) -> Tensor:
    """Return the bits of a range of the whole tensor, zeros where they lie on other ranks: nobody looks at those."""
    bits = torch.zeros(stop - start, dtype=block.dtype)
    for here, there in box.runs(start, stop):
        bits[there.start - start : there.stop - start] = block[here].cpu()
    return bits
