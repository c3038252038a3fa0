"""Coordinates: which entries of which tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.errors import CoordinateError

if TYPE_CHECKING:
    from rlforget.delta import Delta


class Coordinates(Mapping[str, Tensor]):
    """An ordered mapping from tensor names to flat indices.

    Args:
        indices: For each tensor, 1-D integer flat indices (logical, row-major), strictly ascending.

    Raises:
        CoordinateError: Indices that are negative, repeated, out of order, or no 1-D integer tensor.
    """

    def __init__(self, indices: Mapping[str, Tensor]) -> None:
        self._indices = {name: _checked(name, value) for name, value in indices.items()}

    @classmethod
    def of(cls, delta: Delta) -> Coordinates:
        """Return every coordinate that `delta` changed."""
        return cls({name: tensor.indices for name, tensor in delta.items() if tensor.changed})

    def __getitem__(self, name: str) -> Tensor:
        """Return the int64 flat indices in tensor `name`."""
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"Coordinates({self.count} in {len(self)} tensors)"

    @property
    def count(self) -> int:
        """How many coordinates there are."""
        return sum(indices.numel() for indices in self._indices.values())

    def positions(self, delta: Delta) -> dict[str, Tensor]:
        """Return where these coordinates stand among those that `delta` changed.

        Returns:
            For each tensor, int64 positions p with `delta[name].indices[p] == self[name]`.

        Raises:
            CoordinateError: A coordinate that the delta did not change.
        """
        return {name: _positions(name, indices, delta) for name, indices in self._indices.items()}


def _checked(name: str, indices: Tensor) -> Tensor:
    integral = indices.dtype in (torch.int32, torch.int64) and indices.dim() == 1
    values = indices.to(torch.int64)
    if not integral or (values.numel() and int(values[0]) < 0) or not bool((values[1:] > values[:-1]).all()):
        raise CoordinateError(
            f"the coordinates of {name!r}",
            expected="a 1-D int32 or int64 tensor of flat indices, none negative, strictly ascending",
            found=f"{indices.dtype} of shape {tuple(indices.shape)}, or indices out of order",
            fix="Sort the indices and drop the repeated ones.",
        )
    return values


def _positions(name: str, wanted: Tensor, delta: Delta) -> Tensor:
    if name not in delta:
        raise CoordinateError(
            f"the coordinates of {name!r}",
            expected="coordinates that the delta changed",
            found="a tensor that the delta does not hold",
            fix="Choose coordinates from a conflict of this very delta.",
        )
    return delta[name].positions(wanted)
