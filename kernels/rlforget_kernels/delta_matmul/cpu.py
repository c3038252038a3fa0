"""`delta_matmul` with numba: parts of the difference multiplied in a core's cache."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit, specialized
from rlforget_kernels.common.delta_blocks_cpu import ROWS, Factor, float_format, matrix, multiply_part
from rlforget_kernels.common.delta_parts_cpu import Part, Rooms, parts_of_differences
from rlforget_kernels.common.products_cpu import PANEL_BYTES
from rlforget_kernels.common.threads import in_order


def delta_matmul(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.delta_matmul`."""
    dtype = torch.float64 if float64 else torch.float32
    products = [torch.zeros(old.shape[0], one.shape[1], dtype=dtype) for old, one in zip(before, right, strict=True)]
    energy = torch.zeros(len(before), dtype=torch.float64)
    cut = parts_of_differences(before, right, float64)
    rooms = Rooms(cut, before, right, float64)
    sides = [(*matrix(old), *matrix(new)) for old, new in zip(before, after, strict=True)]

    def work(part: Part[Factor]) -> float:
        k = part.k
        kernel = _kernel(*float_format(before[k].dtype))
        return float(kernel(sides[k], part.place, part.factor.take(), rooms.of(part), products[k].numpy()))

    # Parts of one range of columns write different rows; those of the next ranges add to them.
    for _, turn in itertools.groupby(sorted(cut, key=_first_column), key=_first_column):
        ready = list(turn)
        for part, squares in zip(ready, in_order(work, ready), strict=True):
            energy[part.k] += squares
    return products, energy


def _first_column(part: Part[Factor]) -> int:
    return part.columns.start


@specialized
def _kernel(exponent: int, mantissa: int) -> Any:
    @jit
    def add_product(sides, place, factor, scratch, product):
        """Add to the rows of the rectangle at `place` of `product` [out, r]; return the sum of squares."""
        start, stop, _, _ = place
        energy = multiply_part(sides, place, factor, scratch, exponent, mantissa)
        panel, held = PANEL_BYTES // product.itemsize, -(-(stop - start) // ROWS) * ROWS
        for first in range(0, product.shape[1], panel):
            count = min(panel, product.shape[1] - first)
            for k in range(stop - start):
                place = first * held + k * panel
                target, source = product[start + k, first : first + count], scratch.product[place : place + count]
                for j in range(count):
                    target[j] += source[j]
        return energy

    return add_product
