"""`fisher_accumulate_` with numba."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import float_of_bits, jit, widen
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.threads import map_slices

_NO_INDICES = np.empty(0, dtype=np.int32)


@jit
def _add_squares(fisher, gradient, indices, gathered, start, stop):
    """Over a float32 or float64 `gradient`; `fisher` as uint32 bits."""
    for j in range(np.uint64(start), np.uint64(stop)):
        value = np.float32(gradient[np.uint64(indices[j]) if gathered else j])
        fisher[j] = result_bits(float_of_bits(fisher[j]) + value * value)


@jit
def _add_squares_of_codes(fisher, gradient, exponent, mantissa, indices, gathered, start, stop):
    """Over the codes (uint8 or uint16) of a narrower `gradient`."""
    for j in range(np.uint64(start), np.uint64(stop)):
        value = widen(gradient[np.uint64(indices[j]) if gathered else j], exponent, mantissa)
        fisher[j] = result_bits(float_of_bits(fisher[j]) + value * value)


def fisher_accumulate_(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
    """See `rlforget_kernels.fisher_accumulate`."""
    bits = as_bits(fisher)
    total = bits.numpy().view(np.uint32)
    gathered = indices is not None
    where = _NO_INDICES if indices is None else indices.contiguous().numpy()
    if gradient.dtype in (torch.float32, torch.float64):
        values = as_bits(gradient).view(gradient.dtype).numpy()
        map_slices(lambda start, stop: _add_squares(total, values, where, gathered, start, stop), total.size)
    else:
        codes = as_bits(gradient).numpy()
        codes = codes.view(f"u{codes.itemsize}")
        form = FLOAT_FORMAT[gradient.dtype][:2]
        map_slices(
            lambda start, stop: _add_squares_of_codes(total, codes, *form, where, gathered, start, stop), total.size
        )
    write_back(fisher, bits)
