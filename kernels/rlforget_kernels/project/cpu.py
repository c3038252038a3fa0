"""`project` with numba: products of the difference's rows in a core's cache, multiplied from the other side there."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit, specialized
from rlforget_kernels.common.delta_blocks_cpu import ROWS, Factor, float_format, matrix, multiply, multiply_part
from rlforget_kernels.common.delta_parts_cpu import Part, Rooms, parts_of_differences
from rlforget_kernels.common.products_cpu import PANEL_BYTES, TILE_ROWS
from rlforget_kernels.common.threads import in_order


def project(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.project`."""
    energy = torch.empty(len(before), 2, dtype=torch.float64)
    cut = parts_of_differences(before, v, float64)
    rooms = Rooms(cut, before, v, float64)
    lefts = [_padded(left, float64) for left in u]
    sides = [(*matrix(old), *matrix(new)) for old, new in zip(before, after, strict=True)]

    def work(part: Part[Factor]) -> tuple[npt.NDArray[Any], float]:
        k = part.k
        kernel = _kernel(*float_format(before[k].dtype))
        core, squares = kernel(sides[k], part.place, lefts[k], part.factor.take(), rooms.of(part))
        return core.transpose(1, 0, 2).reshape(core.shape[1], -1)[: u[k].shape[1], : v[k].shape[1]], float(squares)

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


def _padded(left: Tensor, float64: bool) -> npt.NDArray[Any]:
    """`left` with as many columns as products take, zeros added."""
    missing = -left.shape[1] % TILE_ROWS
    held = torch.nn.functional.pad(left.detach(), (0, missing)) if missing else left.detach().contiguous()
    return (held.double() if float64 else held).numpy()


@specialized
def _kernel(exponent: int, mantissa: int) -> Any:
    @jit
    def project_rows(sides, place, left, factor, scratch):
        """The core of the rectangle at `place`, [panels, r_u rounded up, width], and the sum of squares."""
        energy = multiply_part(sides, place, factor, scratch, exponent, mantissa)
        (start, stop, _, _), product = place, scratch.product
        panel, rank = PANEL_BYTES // product.itemsize, left.shape[1]
        held, panels = -(-(stop - start) // ROWS) * ROWS, -(-factor.rows.shape[1] // panel)
        core = np.zeros((panels, rank, panel), product.dtype)
        flat, count = core.reshape(-1), stop - start
        multiply(left.reshape(-1), start * rank, 1, rank, rank, product, 0, held * panel, count, flat, 0, rank, panels)
        return core, energy

    return project_rows
