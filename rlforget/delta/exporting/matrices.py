"""The change of one matrix, to be multiplied with narrow matrices: sparse where little changed, else as the pair.

Neither form is the float32 difference of the whole matrix: the sparse one keeps what changed, twice, by rows and by
columns; the other one the stored bits of both sides, whose difference `delta_matmul` takes in registers.

Sparse products are torch's and not `project_sparse`, which gives the core Uᵀ δ V alone, where factors are found by
δ V. And the one inner product that a core would do for takes as long by it: at rank 64 and 1% of 2048 x 2048 changed,
0.8 ms by either, in float64 on one thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from rlforget.delta.exporting.changes import difference
from rlforget.delta.scan import Piece
from rlforget.weights import TensorMeta
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.delta_matmul import delta_matmul

SPARSE = 0.1
"""The share of changed coordinates up to which products with what changed are faster than products with the pair."""
_WIDEST = 256  # columns that `delta_matmul` takes at once


class Change(Protocol):
    """A matrix δ [out, in] = after − before.

    Attributes:
        shape: (out, in).
        energy: ‖δ‖², Frobenius, summed in float64.
    """

    shape: tuple[int, int]
    energy: float

    def times(self, right: Tensor) -> Tensor:
        """Return δ · right, [out, r] in the dtype of `right`: float32 or float64 [in, r]."""
        ...

    def transposed_times(self, left: Tensor) -> Tensor:
        """Return δᵀ · left, [in, r] in the dtype of `left`: float32 or float64 [out, r]."""
        ...


class SparseChange:
    """A matrix of which few coordinates changed.

    Args:
        shape: (out, in).
        indices: 1-D integers, ascending row-major flat indices.
        values: float32 [k], after − before there.
    """

    def __init__(self, shape: tuple[int, int], indices: Tensor, values: Tensor) -> None:
        out, width = self.shape = shape
        rows, columns = indices // width, indices % width
        self.energy = float(values.double().square().sum())
        self._by_row = _compressed(rows, columns, values, (out, width))
        order = torch.argsort(columns, stable=True)
        self._by_column = _compressed(columns[order], rows[order], values[order], (width, out))

    def times(self, right: Tensor) -> Tensor:
        """Return δ · right."""
        return self._by_row.to(right.dtype) @ right

    def transposed_times(self, left: Tensor) -> Tensor:
        """Return δᵀ · left."""
        return self._by_column.to(left.dtype) @ left


class DenseChange:
    """A matrix of which much changed.

    Args:
        before: [out, in], any floating dtype.
        after: Likewise.
    """

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self.shape = (before.shape[0], before.shape[1])
        self._pair = before, after
        probe = torch.zeros(self.shape[1], 1)
        self.energy = float(delta_matmul([before], [after], [probe], True)[1])

    def times(self, right: Tensor) -> Tensor:
        """Return δ · right."""
        return _product(*self._pair, right)

    def transposed_times(self, left: Tensor) -> Tensor:
        """Return δᵀ · left."""
        before, after = self._pair
        return _product(before.mT, after.mT, left)


def change_of(meta: TensorMeta, changed: int, pieces: Iterable[Piece]) -> Change:
    """Gather what changed in a matrix, in the form whose products take less time.

    Args:
        meta: A floating dtype and two sizes.
        changed: How many coordinates changed.
        pieces: Where, and from which bits to which.

    Raises:
        NonFiniteError: A change that is no finite number.
    """
    out, width = meta.shape
    if changed <= SPARSE * meta.numel:
        parts = [(piece.indices, difference(piece)) for piece in pieces]
        indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
        return SparseChange((out, width), indices, values)
    # What did not change is 0 on both sides: its difference is 0 all the same.
    before, after = (torch.zeros(meta.numel, dtype=bits_dtype(meta.dtype)) for _ in range(2))
    for piece in pieces:
        difference(piece)
        before[piece.indices.long()], after[piece.indices.long()] = piece.before_bits, piece.after_bits
    return DenseChange(*(bits.view(meta.dtype).view(out, width) for bits in (before, after)))


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    counts = torch.bincount(rows, minlength=shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns.long(), values, shape, check_invariants=False)


def _product(before: Tensor, after: Tensor, right: Tensor) -> Tensor:
    parts = [
        delta_matmul([before], [after], [part.contiguous()], right.dtype == torch.float64)[0][0]
        for part in torch.split(right, _WIDEST, dim=1)
    ]
    return torch.cat(parts, dim=1)
