"""`project_sparse` with numba: rows of δV in a core's cache, multiplied with those of U there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit
from rlforget_kernels.common.delta_blocks_cpu import ROWS, SUM, multiply
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS
from rlforget_kernels.common.threads import in_order

_STRIP = 512  # rows of a part: the same on every machine, for sums are added up from parts


def project_sparse(
    indices: Tensor, values: Tensor, shape: Sequence[int], u: Tensor, v: Tensor, float64: bool = False
) -> Tensor:
    """See `rlforget_kernels.project_sparse`."""
    where, changes, left, right = (tensor.detach().contiguous().numpy() for tensor in (indices, values, u, v))
    starts = range(0, shape[0], _STRIP)
    ends = np.searchsorted(where, [min(start + _STRIP, shape[0]) * shape[1] for start in starts])
    first = np.concatenate([[0], ends])
    parts = [part for part in range(len(starts)) if first[part] < first[part + 1]]
    number = np.float64 if float64 else np.float32

    def work(part: int) -> npt.NDArray[Any]:
        inside = slice(first[part], first[part + 1])
        taken = changes[inside].astype(number, copy=False)
        core: npt.NDArray[Any] = _project_rows(where[inside], taken, shape[1], left, right)
        return core

    total = np.zeros((u.shape[1], v.shape[1]))
    for core in in_order(work, parts):
        total += core.transpose(1, 0, 2).reshape(core.shape[1], -1)[: u.shape[1], : v.shape[1]]
    return torch.from_numpy(total.astype(number, copy=False))


@jit
def _project_rows(indices, values, columns, left, right):
    """The core of the changes of one part, as panels [panels, r_u rounded up, width], in the dtype of `values`."""
    rank, width = left.shape[1], PANEL_BYTES // values.itemsize
    panels = -(-right.shape[1] // width)
    padded = -(-rank // TILE_ROWS) * TILE_ROWS
    core = np.zeros((panels, padded, width), values.dtype)
    product = np.zeros((panels, ROWS, width), values.dtype)  # of rows that have changes, one behind the other
    block = np.zeros((ROWS, padded), values.dtype)  # of those rows of `left`, which the product takes transposed
    total = np.zeros(right.shape[1], values.dtype)
    filled = 0
    start = 0
    while start < indices.size:
        row = np.int64(indices[start]) // columns
        stop = start + np.searchsorted(indices[start:], (row + 1) * columns)
        block[filled, :rank] = left[row]
        product[:, filled] = 0
        for begin in range(start, stop, SUM):
            end = min(begin + SUM, stop)
            _weighted_sum(indices[begin:end], values[begin:end], row * columns, right, total)
            for panel in range(panels):
                here = total[panel * width : (panel + 1) * width]
                product[panel, filled, : here.size] += here
        filled += 1
        start = stop
        if filled == ROWS or start == indices.size:
            rows, flat = product.reshape(-1), core.reshape(-1)
            multiply(block.reshape(-1), 0, 1, padded, rank, rows, 0, ROWS * width, filled, flat, padded)
            filled = 0
    return core


@jit
def _weighted_sum(indices, values, base, right, total):
    """total = Σ values · rows of `right`, of the coordinates of one row that starts at `base`."""
    total[:] = 0
    for k in range(indices.size):
        source = right[np.int64(indices[k]) - base]
        value = values[k]
        for j in range(total.size):
            total[j] += value * source[j]
