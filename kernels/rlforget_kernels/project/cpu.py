"""`project` with numba: blocks of the difference in a core's cache, multiplied from both sides there."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit, specialized
from rlforget_kernels.common.delta_blocks_cpu import DEPTH, float_format, matrix, multiply, multiply_rows, scratch
from rlforget_kernels.common.delta_parts_cpu import Part, parts
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS
from rlforget_kernels.common.threads import in_order


def project(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.project`."""
    energy = torch.empty(len(before), 2, dtype=torch.float64)
    local = threading.local()

    def work(part: Part) -> tuple[npt.NDArray[Any], float]:
        k, rank = part.k, v[part.k].shape[1]
        if getattr(local, "rank", None) != rank:
            local.rank, local.scratch = rank, scratch(rank, float64)
        columns = slice(part.columns.start, part.columns.stop)
        sides = (*matrix(before[k][:, columns]), *matrix(after[k][:, columns]))
        left = u[k].detach().contiguous().numpy()
        rows, factor = (part.rows.start, part.rows.stop), part.factor.take()
        kernel = _kernel(*float_format(before[k].dtype))
        core, squares = kernel(sides, *rows, len(part.columns), left, factor, local.scratch)
        return core.transpose(1, 0, 2).reshape(core.shape[1], -1)[: left.shape[1], :rank], float(squares)

    cut = parts(before, v, float64)
    found = zip(cut, in_order(work, cut), strict=True)
    cores = []
    for k, results in itertools.groupby(found, key=lambda pair: pair[0].k):
        core = np.zeros((u[k].shape[1], v[k].shape[1]))
        squares = 0.0
        for _, (part_core, part_squares) in results:
            core += part_core
            squares += part_squares
        energy[k, 0], energy[k, 1] = squares, float(np.square(core).sum())
        cores.append(torch.from_numpy(core if float64 else core.astype(np.float32)))
    return cores, energy


@specialized
def _kernel(exponent: int, mantissa: int) -> Any:
    @jit
    def project_rows(sides, start, stop, columns, left, factor, scratch):
        """The core of rows start ... stop, [panels, r_u rounded up, width], and the sum of squares."""
        product = scratch.product
        panel, held = PANEL_BYTES // product.itemsize, scratch.block.size // DEPTH
        rank = left.shape[1]
        padded = -(-rank // TILE_ROWS) * TILE_ROWS
        core = np.zeros((product.size // (held * panel), padded, panel), product.dtype)
        block = np.zeros((held, padded), product.dtype)  # of rows of `left`, which the product takes transposed
        energy = 0.0
        for i in range(start, stop, held):
            rows = min(held, stop - i)
            energy += multiply_rows(sides, i, rows, columns, factor, scratch, exponent, mantissa)
            block[:rows, :rank] = left[i : i + rows]
            flat = block.reshape(-1)
            multiply(flat, 0, 1, padded, rank, product, 0, held * panel, rows, core.reshape(-1), padded)
        return core, energy

    return project_rows
