"""`subtract_` with numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlforget_kernels.common.arithmetic_cpu import result_bits64
from rlforget_kernels.common.bits import as_bits, write_back
from rlforget_kernels.common.cpu_math import draw, jit, round_drawn, round_nearest, specialized, widen
from rlforget_kernels.common.hashing import mix64_int
from rlforget_kernels.common.rounding import FLOAT_FORMAT, FloatFormat
from rlforget_kernels.common.threads import map_pieces

_DRAWN = 1024  # coordinates whose random bits are drawn at a time: they stay in the first cache


def foreach_subtract_(weights: list[Tensor], us: list[Tensor], seed: int | None, offsets: Sequence[int]) -> None:
    """See `rlforget_kernels.subtract`."""
    bits = [as_bits(weight) for weight in weights]
    codes = [one.numpy().view(f"u{one.element_size()}") for one in bits]
    changes = [as_bits(u).view(torch.float32).numpy() for u in us]
    kernels = [_kernel(weight.dtype, seed) for weight in weights]
    mixed_seed = np.uint64(mix64_int((seed or 0) % 2**64))
    firsts = [np.uint64(offset % 2**64) for offset in offsets]

    def work(position: int, start: int, stop: int) -> None:
        kernels[position](codes[position], changes[position], mixed_seed, firsts[position], start, stop)

    map_pieces(work, [one.size for one in codes])
    for weight, one in zip(weights, bits, strict=True):
        write_back(weight, one)


def _kernel(dtype: torch.dtype, seed: int | None) -> Any:
    if dtype is torch.float64:
        return _subtract64
    layout = FLOAT_FORMAT[dtype]
    return _to_nearest(layout) if seed is None or dtype is torch.float32 else _by_chance(layout)


@jit
def _subtract64(bits, u, mixed_seed, offset, start, stop):
    """In float64."""
    for i in range(np.uint64(start), np.uint64(stop)):
        bits[i] = result_bits64(np.uint64(bits[i]).view(np.float64) - np.float64(u[i]))


@specialized
def _to_nearest(layout: FloatFormat) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def subtract(codes, u, mixed_seed, offset, start, stop):
        for i in range(np.uint64(start), np.uint64(stop)):
            difference = widen(codes[i], exponent, mantissa) - u[i]
            codes[i] = round_nearest(difference, (exponent, mantissa, overflow, nan))

    return subtract


@specialized
def _by_chance(layout: FloatFormat) -> Any:
    exponent, mantissa, overflow, nan = layout

    @jit
    def subtract(codes, u, mixed_seed, offset, start, stop):
        noise = np.empty(_DRAWN, np.uint32)
        for block in range(np.uint64(start), np.uint64(stop), np.uint64(_DRAWN)):
            draw(noise, mixed_seed, offset + block)
            for i in range(block, min(block + np.uint64(_DRAWN), np.uint64(stop))):
                difference = widen(codes[i], exponent, mantissa) - u[i]
                codes[i] = round_drawn(difference, (exponent, mantissa, overflow, nan), noise[i - block])

    return subtract
