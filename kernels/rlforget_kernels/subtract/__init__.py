"""`subtract_`: subtract a dense float32 correction from a weight in place, rounded to nearest or stochastically."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.dispatch import backend, operator


def _check(weight: Tensor, u: Tensor) -> None:
    bits_dtype(weight.dtype)
    if not weight.dtype.is_floating_point:
        raise TypeError(f"subtract_: weight: expected a float dtype; found {weight.dtype}")
    if u.dtype is not torch.float32:
        raise TypeError(f"subtract_: u: expected float32; found {u.dtype}")
    if u.shape != weight.shape:
        raise ValueError(f"subtract_: u: expected the shape of weight, {tuple(weight.shape)}; found {tuple(u.shape)}")


def _fake(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    _check(weight, u)


@operator(_fake, mutates=("weight",))
def subtract_(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
    """Write weight ← weight − u, in place.

    The difference is computed in float32 (float64 for float64 weights) and rounded once into the weight's dtype:

    - `seed` None: to nearest even.
    - else stochastically, to one of the two neighbours, up with the probability of the part that is cut off, so that
      the expectation is the difference itself even where most of `u` is below half a unit in the last place. Where the
      upper neighbour is beyond the finite range, rounding is to nearest: chance alone makes no infinity. float32 and
      float64 weights hold the difference as it is computed, so a seed changes nothing for them.

    Overflow is infinity, ±448 in float8_e4m3fn; a NaN result is the one NaN of the dtype.

    Args:
        weight: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or float64, any shape and strides. Written in
            place.
        u: float32, the shape of `weight`.
        seed: Any int64. The 32 random bits of coordinate i are the leading ones of
            `hashing.random_words(seed, offset + i)`: the same on every device and however the tensor is split.
        offset: Flat index of the first coordinate: of a shard in its tensor, or of the tensor in the model.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that differ, or tensors on different devices.

    Bytes moved, N coordinates of b bytes: N · (2b + 4).

    Source: stochastic rounding, as in Gupta et al. 2015, arXiv:1502.02551.
    """
    _check(weight, u)
    backend(__name__, weight, u).subtract_(weight, u, seed, offset)
