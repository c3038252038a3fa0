"""`project_sparse` with numba: rows of δV in a core's cache, multiplied with those of U there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_ascending
from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.delta_blocks_cpu import multiply
from rlforget_kernels.common.delta_sparse_cpu import add_weighted_rows
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS
from rlforget_kernels.common.threads import in_order

_STRIP = 512  # rows of a part: the same on every machine, for sums are added up from parts
_TOGETHER = 8  # parts that a thread takes at a time at most: each takes memory
_ROWS = 64  # whose products are multiplied together


def project_sparse(
    indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False
) -> Tensor:
    """See `rlforget_kernels.project_sparse`."""
    where, changes, left, right = (tensor.detach().contiguous().numpy() for tensor in (indices, values, u, v))
    first = _starts(where, *shape)
    count = len(first) - 1
    together = max(min(-(-count // torch.get_num_threads()), _TOGETHER), 1)
    number = np.float64 if float64 else np.float32

    def work(part: int) -> npt.NDArray[Any]:
        bounds = first[part : part + together + 1]
        inside = slice(bounds[0], bounds[-1])
        taken = changes[inside].astype(number, copy=False)
        cores: npt.NDArray[Any] = _project_parts(where[inside], taken, bounds - bounds[0], part, *shape, left, right)
        return cores

    # Parts that ascend and follow on one another ascend together: a look at all beforehand would take as long as this.
    good = first[-1] == len(where) and bool((first[1:] >= first[:-1]).all())
    total = np.zeros((u.shape[1], v.shape[1]))
    for cores in in_order(work, range(0, count, together)) if good else [np.empty(0)]:
        if not cores.size:
            require_ascending("project_sparse", indices, shape[0] * shape[1])
            continue
        rows = cores.transpose(0, 2, 1, 3).reshape(len(cores), cores.shape[2], -1)
        for core in rows[:, : u.shape[1], : v.shape[1]]:
            total += core
    return torch.from_numpy(total.astype(number, copy=False))


@jit
def _starts(indices, rows, columns):
    """Where in `indices` each part begins, and behind the last."""
    parts = -(-rows // _STRIP)
    first = np.zeros(parts + 1, np.int64)
    for part in range(parts):
        first[part + 1] = np.searchsorted(indices, min((part + 1) * _STRIP, rows) * columns)
    return first


@jit
def _ascends(indices, begin, end):
    """Whether indices ascend strictly from `begin` or later to before `end`."""
    if indices.size == 0:
        return True
    wrong = (indices[0] < begin) | (indices[-1] >= end)
    for k in range(1, indices.size):
        wrong |= indices[k] <= indices[k - 1]
    return not wrong


@jit
def _project_parts(indices, values, first, part, rows, columns, left, right):
    """The cores of some parts, or none where their indices do not ascend from where the parts begin to where they end.

    As panels [parts, panels, r_u rounded up, width], in the dtype of `values`.
    """
    count, width = first.size - 1, PANEL_BYTES // values.itemsize
    panels = -(-right.shape[1] // width)
    padded = -(-left.shape[1] // TILE_ROWS) * TILE_ROWS
    cores = np.zeros((count, panels, padded, width), values.dtype)
    product = np.zeros((panels, _ROWS, width), values.dtype)  # of rows that have changes, one behind the other
    block = np.zeros((_ROWS, padded), values.dtype)  # of those rows of `left`, which the product takes transposed
    for k in range(count):
        here = slice(first[k], first[k + 1])
        begin, end = (part + k) * _STRIP * columns, min((part + k + 1) * _STRIP, rows) * columns
        if not _ascends(indices[here], begin, end):
            return cores[:0]
        _project_rows(indices[here], values[here], columns, left, right, product, block, cores[k].reshape(-1))
    return cores


@jit
def _project_rows(indices, values, columns, left, right, product, block, core):
    """Add to the core of a part."""
    rank, padded = left.shape[1], block.shape[1]
    panels, held, width = product.shape
    filled = 0
    start, stop = np.int64(0), np.int64(0)
    while start < indices.size:
        row = np.int64(indices[start]) // columns
        end = (row + 1) * columns
        while stop < indices.size and np.int64(indices[stop]) < end:
            stop += 1
        block[filled, :rank] = left[row]
        product[:, filled] = 0
        target, step = filled * width, held * width
        add_weighted_rows(values, indices, start, stop, row * columns, right, product.reshape(-1), target, step)
        filled += 1
        start = stop
        if filled == held or start == indices.size:
            rows = product.reshape(-1)
            multiply(block.reshape(-1), 0, 1, padded, padded, rows, 0, held * width, filled, core, 0, padded, panels)
            filled = 0
