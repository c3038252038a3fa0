"""`delta_matmul` with numba: blocks of the difference in a core's cache, multiplied there."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import torch
from torch import Tensor

from rlforget_kernels.common.cpu_math import jit, specialized
from rlforget_kernels.common.delta_blocks_cpu import DEPTH, float_format, matrix, multiply_rows, scratch
from rlforget_kernels.common.delta_parts_cpu import Part, parts
from rlforget_kernels.common.products_cpu import PANEL_BYTES
from rlforget_kernels.common.threads import in_order


def delta_matmul(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], float64: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `rlforget_kernels.delta_matmul`."""
    dtype = torch.float64 if float64 else torch.float32
    products = [torch.zeros(old.shape[0], one.shape[1], dtype=dtype) for old, one in zip(before, right, strict=True)]
    energy = torch.zeros(len(before), dtype=torch.float64)
    local = threading.local()

    def work(part: Part) -> float:
        k, rank = part.k, right[part.k].shape[1]
        if getattr(local, "rank", None) != rank:
            local.rank, local.scratch = rank, scratch(rank, float64)
        kernel = _kernel(*float_format(before[k].dtype))
        columns = slice(part.columns.start, part.columns.stop)
        sides = (*matrix(before[k][:, columns]), *matrix(after[k][:, columns]))
        factor, rows = part.factor.take(), (part.rows.start, part.rows.stop)
        return float(kernel(sides, *rows, len(part.columns), factor, local.scratch, products[k].numpy()))

    # Parts of one range of columns write different rows; those of the next ranges add to them.
    cut = parts(before, right, float64)
    for _, turn in itertools.groupby(sorted(cut, key=_first_column), key=_first_column):
        ready = list(turn)
        for part, squares in zip(ready, in_order(work, ready), strict=True):
            energy[part.k] += squares
    return products, energy


def _first_column(part: Part) -> int:
    return part.columns.start


@specialized
def _kernel(exponent: int, mantissa: int) -> Any:
    @jit
    def add_product(sides, start, stop, columns, factor, scratch, product):
        """Add to rows start ... stop of `product` [out, r]; return the sum of squares."""
        panel = PANEL_BYTES // product.itemsize
        held = scratch.block.size // DEPTH
        energy = 0.0
        for i in range(start, stop, held):
            rows = min(held, stop - i)
            energy += multiply_rows(sides, i, rows, columns, factor, scratch, exponent, mantissa)
            for first in range(0, product.shape[1], panel):
                count = min(panel, product.shape[1] - first)
                for k in range(rows):
                    place = first * held + k * panel
                    target, source = product[i + k, first : first + count], scratch.product[place : place + count]
                    for j in range(count):
                        target[j] += source[j]
        return energy

    return add_product
