"""The positions that count on one side of a Gram matrix, and where their features are in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.operands_cpu import FORMATS


class Features(NamedTuple):
    """One factor of the gradients: features of the position p are at flat[offsets[p]], ..., as bits of `dtype`.

    Of tokens, the token itself is at flat[offsets[p]].
    """

    flat: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    width: int
    dtype: torch.dtype

    @property
    def values(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], int, int]:
        """What the functions of `operands_cpu` call values."""
        return self.flat, self.offsets, self.width, FORMATS[self.dtype]


class Positions(NamedTuple):
    """The positions of some samples, those of sample a from starts[a] on.

    Attributes:
        inputs: x.
        gradients: y.
        starts: int64 [samples + 1].
    """

    inputs: Features
    gradients: Features
    starts: npt.NDArray[np.int64]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.starts.size - 1

    @property
    def total(self) -> int:
        """How many positions these samples have."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of the inputs and of the gradients."""
        return self.inputs.width, self.gradients.width

    def part(self, start: int, stop: int) -> Positions:
        """Return the samples from `start` to `stop`."""
        return self._replace(starts=self.starts[start : stop + 1])


def positions(inputs: Tensor, gradients: Tensor, mask: Tensor | None) -> Positions:
    """List the positions that `mask` leaves."""
    samples, length = gradients.shape[:2]
    if mask is None:
        sample = torch.arange(samples).repeat_interleave(length)
        position = torch.arange(length).repeat(samples)
    else:
        sample, position = mask.nonzero(as_tuple=True)
    starts = torch.zeros(samples + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(sample, minlength=samples).cumsum(0)
    return Positions(_features(inputs, sample, position), _features(gradients, sample, position), starts.numpy())


def _features(tensor: Tensor, sample: Tensor, position: Tensor) -> Features:
    bits = tensor.detach().view(bits_dtype(tensor.dtype))
    width = 1
    if bits.dim() == 3:
        width = bits.shape[2]
        if bits.stride(2) != 1 and width > 1:
            bits = bits.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(bits.shape, bits.stride(), strict=True))
    flat = bits.as_strided((span if bits.numel() else 0,), (1,)).numpy()
    if tensor.is_floating_point():
        flat = flat.view(f"u{bits.element_size()}")
    return Features(flat, (sample * bits.stride(0) + position * bits.stride(1)).numpy(), width, tensor.dtype)
