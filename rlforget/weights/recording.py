"""Changes on their way into a record: each is held against the checkpoint and cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from torch import Tensor

from rlforget.errors import CoordinateError, LayoutError, WrongBaseError
from rlforget.weights.journal import WINDOW, Bits, JournalWriter, Place, ShardIdentity
from rlforget.weights.safetensors_file import CODE_OF_DTYPE
from rlforget.weights.shards import Shards
from rlforget_kernels.common.bits import bits_dtype, index_dtype

if TYPE_CHECKING:
    from rlforget.weights.checkpoint import CheckpointWeights


class Recorder:
    """Checks the changes of a checkpoint, and writes their record.

    Args:
        file: Where to, empty.
        checkpoint: What is to change.
        identities: Its files, in the order of `checkpoint.shards`.
        shards: The same, open.
        note: What the write is.
    """

    def __init__(
        self,
        file: BinaryIO,
        checkpoint: CheckpointWeights,
        identities: Sequence[ShardIdentity],
        shards: Shards,
        note: str,
    ) -> None:
        self._checkpoint, self._shards = checkpoint, shards
        self._places = _places(checkpoint)
        self._number = {place.name: number for number, place in enumerate(self._places)}
        self._next = [0] * len(self._places)  # the first index that a tensor's next change may have
        self._writer = JournalWriter(file, identities, self._places, note)

    @property
    def changed(self) -> int:
        """How many coordinates get other bits."""
        return self._writer.changed

    def add(self, name: str, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> None:
        """Check and record some changes of one tensor; see `write_in_place` for what is refused."""
        number = self._number[self._checkpoint.canonical(name)]
        place = self._places[number]
        self._check(number, indices, before_bits, after_bits)
        # Little-endian, as the file is, whatever the machine.
        index_code = f"<i{index_dtype(place.numel).itemsize}"
        at, before, after = (tensor.cpu().numpy() for tensor in (indices, before_bits, after_bits))
        at = at.astype(index_code, copy=False)
        for part in _windows(at):
            self._add_window(number, at[part], before[part], after[part])

    def finish(self) -> None:
        """Complete the record."""
        self._writer.finish()

    def _add_window(self, number: int, at: Bits, before: Bits, after: Bits) -> None:
        place = self._places[number]
        window = range(int(at[0]), int(at[-1]) + 1)
        held = self._shards.held(place, window)
        inside = at - at[0]
        found = held[inside]
        if not np.array_equal(found, before):
            raise self._wrong_base(place, at, before, after, found)
        changed = int(np.count_nonzero(before != after))
        if changed == 0:
            return
        if at.nbytes + 2 * before.nbytes < 2 * held.nbytes:
            self._writer.add(number, at, before, after, changed)
        else:
            later = held.copy()
            later[inside] = after
            self._writer.add(number, window, held, later, changed)

    def _check(self, number: int, indices: Tensor, before_bits: Tensor, after_bits: Tensor) -> None:
        place = self._places[number]
        what = f"{self._checkpoint.description}, tensor {place.name!r}"
        bits = bits_dtype(self._checkpoint.meta(place.name).dtype)
        if not before_bits.dtype == after_bits.dtype == bits or not (
            indices.dim() == 1 and indices.shape == before_bits.shape == after_bits.shape
        ):
            raise LayoutError(
                what,
                expected=f"1-D indices, and as many bits in {bits}",
                found=f"{tuple(indices.shape)} indices, {tuple(before_bits.shape)} bits in {before_bits.dtype} and "
                f"{tuple(after_bits.shape)} in {after_bits.dtype}",
                fix="Give the changes of this very tensor.",
            )
        if not indices.numel():
            return
        first, last = int(indices[0]), int(indices[-1])
        if first < self._next[number] or last >= place.numel or not bool((indices[1:] > indices[:-1]).all()):
            raise CoordinateError(
                what,
                expected=f"indices from {self._next[number]} to {place.numel - 1}, each once and ascending",
                found=f"indices from {first} to {last}" if last > first else "others",
                fix="Give each storage once, under one of its names, and its changes in order.",
            )
        self._next[number] = last + 1

    def _wrong_base(self, place: Place, at: Bits, before: Bits, after: Bits, found: Bits) -> WrongBaseError:
        wrong = np.flatnonzero(found != before)
        mask = (1 << 8 * place.width) - 1
        now, expected = (int(bits[wrong[0]]) & mask for bits in (found, before))
        done = np.array_equal(found, after)
        return WrongBaseError(
            f"{self._checkpoint.description}, tensor {place.name!r}",
            expected="the bits that the change starts from",
            found=f"other bits at {wrong.size} coordinates or more, first at index {int(at[wrong[0]])}: "
            f"0x{now:0{2 * place.width}x} in place of 0x{expected:0{2 * place.width}x}",
            fix="It is there already: nothing is left to do."
            if done
            else "Take the weights that the change was made from.",
        )


def _places(checkpoint: CheckpointWeights) -> list[Place]:
    return [
        Place(name, CODE_OF_DTYPE[entry.meta.dtype], entry.meta.numel, number, entry.start)
        for number, header in enumerate(checkpoint.shards.values())
        for name, entry in header.entries.items()
    ]


def _windows(indices: Bits) -> Iterator[slice]:
    """Cut ascending indices where they would span more than a window."""
    start = 0
    while start < indices.size:
        end = min(int(indices[start]) + WINDOW, int(indices[-1]) + 1)
        stop = int(np.searchsorted(indices, end)) if end <= int(indices[-1]) else indices.size
        yield slice(start, stop)
        start = stop
