"""Norms of what a rollback took off, beside the norm of the delta."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.weights.ranks import gathered

if TYPE_CHECKING:
    from rlforget.delta import Delta


def difference(before: Tensor, after: Tensor) -> Tensor:
    """Return before − after, in float32; in float64 for float64 and integers."""
    narrow = before.is_floating_point() and before.dtype != torch.float64
    wide = torch.float32 if narrow else torch.float64
    return before.to(wide) - after.to(wide)


def square(values: Tensor) -> float:
    """Return ‖values‖²."""
    return float(values.double().square().sum())


def delta_square(delta: Delta) -> float:
    """Return ‖δ‖², on all ranks that hold some of it."""
    counted = delta.keys() if delta.sharding is None else delta.sharding.counted
    here = sum(square(tensor.values) for name, tensor in delta.items() if tensor.changed and name in counted)
    return here if delta.sharding is None else sum(gathered(here))


def norm_share(part: float, whole: float) -> float:
    """Return a norm over another, of their squares; 0 where there is nothing to compare with."""
    return math.sqrt(part / whole) if whole > 0 else 0.0
