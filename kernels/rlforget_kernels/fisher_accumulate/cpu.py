"""`fisher_accumulate_` with numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import float_of_bits, jit, specialized, widen
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.threads import map_pieces

_NO_INDICES = np.empty(0, dtype=np.int32)


def foreach_fisher_accumulate_(
    fishers: list[Tensor], gradients: list[Tensor], indices: Sequence[Tensor | None]
) -> None:
    """See `rlforget_kernels.fisher_accumulate`."""
    bits = [as_bits(fisher) for fisher in fishers]
    totals = [one.numpy().view(np.uint32) for one in bits]
    codes = [as_bits(gradient).numpy().view(f"u{gradient.element_size()}") for gradient in gradients]
    where = [_NO_INDICES if one is None else one.contiguous().numpy() for one in indices]
    kernels = [_kernel(gradient.dtype, one is not None) for gradient, one in zip(gradients, indices, strict=True)]

    def work(position: int, start: int, stop: int) -> None:
        kernels[position](totals[position], codes[position], where[position], start, stop)

    map_pieces(work, [one.size for one in totals])
    for fisher, one in zip(fishers, bits, strict=True):
        write_back(fisher, one)


def _kernel(dtype: torch.dtype, gathered: bool) -> Any:
    if dtype is torch.float64:
        return _add_squares64(gathered)
    layout = FLOAT_FORMAT[dtype]
    return _add_squares(layout.exponent, layout.mantissa, gathered)


@specialized
def _add_squares(exponent: int, mantissa: int, gathered: bool) -> Any:
    @jit
    def add(fisher, gradient, indices, start, stop):
        for j in range(np.uint64(start), np.uint64(stop)):
            value = widen(gradient[np.uint64(indices[j]) if gathered else j], exponent, mantissa)
            fisher[j] = result_bits(float_of_bits(fisher[j]) + value * value)

    return add


@specialized
def _add_squares64(gathered: bool) -> Any:
    @jit
    def add(fisher, gradient, indices, start, stop):
        for j in range(np.uint64(start), np.uint64(stop)):
            code = np.uint64(gradient[np.uint64(indices[j]) if gathered else j])
            value = np.float32(code.view(np.float64))
            fisher[j] = result_bits(float_of_bits(fisher[j]) + value * value)

    return add
