"""A model's weights before and after a change, on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.checkpoint_pair import DEVIATION, SHAPES, Shape, amplitude, moved
from benchmarks.harness import Machine

CHANGED = 0.0114
"""The share of coordinates that the change moves: that of an RL fine-tune with a small learning rate."""


@dataclass(frozen=True)
class Pair:
    """Weights on both sides of a change, bfloat16, by the names of `shape.tensors()`."""

    shape: Shape
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    @property
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of either side, in one order."""
        return list(self.before.values()), list(self.after.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one side."""
        return sum(tensor.nbytes for tensor in self.after.values())


def shape_on(machine: Machine, layers: int | None = None) -> Shape:
    """Return the widths of a model of 3 billion parameters, with fewer layers if asked; quick, of a tiny one."""
    shape = SHAPES["tiny" if machine.quick else "3b"]
    return replace(shape, layers=min(layers or shape.layers, shape.layers))


@cache
def pair(shape: Shape, device: torch.device) -> Pair:
    """Draw weights and change them, as `checkpoint_pair` does, but for the norms' weights, which are 1."""
    generator, noise = torch.Generator(device).manual_seed(0), amplitude(CHANGED)
    before, after = {}, {}
    for name, dimensions in shape.tensors():
        drawn = torch.empty(dimensions, device=device).normal_(0, DEVIATION, generator=generator)
        before[name] = (torch.ones_like(drawn) if "norm" in name else drawn).bfloat16()
        after[name] = moved(before[name], noise, generator)
    return Pair(shape, before, after)
