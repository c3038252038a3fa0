"""Tensors that the cases run on."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Machine
from rlforget_kernels.common.bits import as_bits

LINE = 64
"""Bytes that a CPU's memory moves at once."""

DENSITIES = {"0.2%": 0.002, "1%": 0.01, "5%": 0.05, "20%": 0.2, "90%": 0.9}
"""Shares of coordinates that change, from a cautious RL fine-tune to SFT."""


def changed_pair(machine: Machine, share: float, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Weights before and after a change of `share` of them, each by its lowest bit."""
    random = torch.Generator(machine.device).manual_seed(0)
    before = torch.randn(machine.elements, generator=random, device=machine.device).to(dtype)
    bits = as_bits(before).clone()
    chosen = torch.rand(machine.elements, generator=random, device=machine.device) < share
    bits ^= chosen
    return before, bits.view(dtype)


def lines_of(indices: Tensor, itemsize: int) -> int:
    """Bytes of the lines of memory that hold the elements at ascending flat indices: what a CPU moves for them."""
    return LINE * len((indices.long() * itemsize // LINE).unique_consecutive())


def floats(machine: Machine, count: int = 1) -> list[Tensor]:
    """`count` positive float32 tensors."""
    random = torch.Generator(machine.device).manual_seed(1)
    return [torch.rand(machine.elements, generator=random, device=machine.device) for _ in range(count)]
