"""`subtract_` with numba."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import jit, random_word, round_nearest, round_stochastic, widen
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.threads import map_slices


def subtract_(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    """See `rlforget_kernels.subtract`."""
    bits = as_bits(weight)
    codes = bits.numpy().view(f"u{bits.element_size()}")
    change = as_bits(u).view(torch.float32).numpy()
    mixed_seed, first = np.uint64(mix64_int((seed or 0) % 2**64)), np.uint64(offset % 2**64)

    def work(start: int, stop: int) -> None:
        if weight.dtype is torch.float64:
            _subtract64(codes, change, start, stop)
            return
        layout = tuple(FLOAT_FORMAT[weight.dtype])
        if seed is None or weight.dtype is torch.float32:
            _subtract_nearest(codes, change, layout, start, stop)
        else:
            _subtract_stochastic(codes, change, layout, mixed_seed, first, start, stop)

    map_slices(work, codes.size)
    write_back(weight, bits)


@jit
def _subtract64(bits, u, start, stop):
    """In float64."""
    for i in range(np.uint64(start), np.uint64(stop)):
        bits[i] = result_bits64(np.uint64(bits[i]).view(np.float64) - np.float64(u[i]))


@jit
def _subtract_nearest(codes, u, layout, start, stop):
    """To nearest even; `codes` of floats of `layout`."""
    for i in range(np.uint64(start), np.uint64(stop)):
        codes[i] = round_nearest(widen(codes[i], layout[0], layout[1]) - u[i], layout)


@jit
def _subtract_stochastic(codes, u, layout, mixed_seed, offset, start, stop):
    """Up or down by the random bits of the coordinate, but to nearest at the edge of the finite range."""
    magnitude = np.uint32((1 << (layout[0] + layout[1])) - 1)
    for i in range(np.uint64(start), np.uint64(stop)):
        difference = widen(codes[i], layout[0], layout[1]) - u[i]
        noise = random_word(mixed_seed, offset + i) >> np.uint64(32)
        code = round_stochastic(difference, layout, noise)
        if (code & magnitude) >= np.uint32(layout[2]):
            code = round_nearest(difference, layout)
        codes[i] = code
