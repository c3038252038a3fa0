"""`subtract_`: subtract a dense float32 correction from a weight in place, rounded to nearest or stochastically."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.hashing import consecutive


def _check(weight: Tensor, u: Tensor) -> None:
    bits_dtype(weight.dtype)
    if not weight.dtype.is_floating_point:
        raise TypeError(f"subtract_: weight: expected a float dtype; found {weight.dtype}")
    if u.dtype is not torch.float32:
        raise TypeError(f"subtract_: u: expected float32; found {u.dtype}")
    if u.shape != weight.shape:
        raise ValueError(f"subtract_: u: expected the shape of weight, {tuple(weight.shape)}; found {tuple(u.shape)}")


def _run(weights: list[Tensor], us: list[Tensor], seed: int | None, offsets: Sequence[int]) -> None:
    for weight, u in zip(weights, us, strict=True):
        _check(weight, u)
    if weights:
        backend(__name__, *weights, *us).foreach_subtract_(weights, us, seed, offsets)


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
    _run([weight], [u], seed, [offset])


def _following(weights: list[Tensor], us: list[Tensor], offsets: list[int] | None) -> list[int]:
    """What stands for no offsets.

    Raises:
        ValueError: for lists of different lengths.
    """
    offsets = consecutive(weights) if offsets is None else offsets
    if not len(weights) == len(us) == len(offsets):
        raise ValueError(
            "foreach_subtract_: expected weights, us and offsets of one length; "
            f"found {[len(weights), len(us), len(offsets)]}"
        )
    return offsets


def _fake_list(
    weights: list[Tensor], us: list[Tensor], seed: int | None = None, offsets: list[int] | None = None
) -> None:
    _following(weights, us, offsets)
    for weight, u in zip(weights, us, strict=True):
        _check(weight, u)


@operator(_fake_list, mutates=("weights",))
def foreach_subtract_(
    weights: list[Tensor], us: list[Tensor], seed: int | None = None, offsets: list[int] | None = None
) -> None:
    """Do what `subtract_` does for every weight of a list, in one launch group or one parallel region.

    Args:
        weights: Tensors on one device, of any mix of shapes, dtypes and strides. Written in place.
        us: One a weight, as for `subtract_`.
        seed: For all.
        offsets: One a weight. None: each weight follows on the one before it in the list, the first at 0.

    Raises:
        TypeError: as `subtract_`.
        ValueError: as `subtract_`, and for lists of different lengths. In every case nothing is written.

    Bytes moved: see `subtract_`.
    """
    _run(weights, us, seed, _following(weights, us, offsets))
