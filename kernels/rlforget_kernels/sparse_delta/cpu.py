"""`sparse_delta` with numba: changes go to scratch memory, are counted, and move into outputs of just their size.

What the scratch has no room for is only counted, and read again once its place is known: it makes outputs that are
larger than what is read. So memory stays within the outputs and the scratch at every density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, bits_dtype, index_dtype
from rlforget_kernels.common.compaction_cpu import compaction, count_changes
from rlforget_kernels.common.cpu_vectors import LANES
from rlforget_kernels.common.scratch import borrowed, columns
from rlforget_kernels.common.threads import GRAIN, map_pieces

Array = npt.NDArray[Any]

_INDEX: dict[torch.dtype, np.dtype[Any]] = {torch.int32: np.dtype(np.int32), torch.int64: np.dtype(np.int64)}


def foreach_sparse_delta(
    before: Sequence[Tensor], after: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """See `rlforget_kernels.sparse_delta`."""
    old, new = ([as_bits(tensor).numpy() for tensor in side] for side in (before, after))
    sizes = [bits.size for bits in old]
    dtypes = [(_INDEX[index_dtype(bits.size)], bits.dtype, bits.dtype) for bits in old]
    compact = compaction()
    with borrowed() as scratch:
        shares = _shares(scratch, sizes)

        def find(position: int, start: int, stop: int) -> _Found:
            room = columns(shares(position, start, stop), dtypes[position], stop - start)
            count, reached = compact(old[position], new[position], start, stop, *room)
            changed = count + count_changes(old[position], new[position], reached, stop)
            return _Found([column[:count] for column in room], reached, changed)

        found = dict(map_pieces(find, sizes, LANES))
        starts, changed = _places(found, len(sizes))
        outputs = [_outputs(tensor, count) for tensor, count in zip(before, changed, strict=True)]

        def place(position: int, start: int, stop: int) -> None:
            part = found[position, start, stop]
            begin = starts[position, start, stop]
            end, middle = begin + part.changed, begin + part.kept[0].size
            arrays = [output.numpy() for output in outputs[position]]
            for array, kept in zip(arrays, part.kept, strict=True):
                array[begin:middle] = kept
            if middle < end:
                rest = [array[middle:end] for array in arrays]
                compact(old[position], new[position], part.reached, stop, *rest)

        if sum(changed) > GRAIN:
            map_pieces(place, sizes, LANES)
        else:  # sooner done than threads are started
            for piece in found:
                place(*piece)
    indices, bits_before, bits_after = ([output[k] for output in outputs] for k in range(3))
    return indices, bits_before, bits_after


@dataclasses.dataclass(frozen=True)
class _Found:
    """The changes of a piece: those that are kept (indices, bits before, after), where they end, how many there are."""

    kept: list[Array]
    reached: int
    changed: int


def _outputs(tensor: Tensor, count: int) -> list[Tensor]:
    """Return uninitialised indices, bits before and bits after for `count` changes of a tensor."""
    bits = bits_dtype(tensor.dtype)
    return [torch.empty(count, dtype=dtype) for dtype in (index_dtype(tensor.numel()), bits, bits)]


def _shares(memory: Array, sizes: Sequence[int]) -> Callable[[int, int, int], Array]:
    """Return what tells a piece its part of the memory, as large as the piece is among all elements."""
    before = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    lines = memory.size // 64  # a part begins where a cache line does

    def share(position: int, start: int, stop: int) -> Array:
        begin, end = ((before[position] + place) * lines // before[-1] * 64 for place in (start, stop))
        return memory[begin:end]

    return share


def _places(
    found: dict[tuple[int, int, int], _Found], tensors: int
) -> tuple[dict[tuple[int, int, int], int], list[int]]:
    """Return how many changes of its tensor lie before each piece, and how many every tensor has."""
    starts, changed = {}, [0] * tensors
    for piece, part in found.items():
        starts[piece] = changed[piece[0]]
        changed[piece[0]] += part.changed
    return starts, changed
