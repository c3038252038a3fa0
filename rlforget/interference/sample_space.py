"""Linear algebra on a tall stack of gradients, seen from the sample side: n×n instead of N×N.

The stack W is float32 [n, N] and is never copied; it is read by blocks, whose float32 products are summed
in float64, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_COLUMNS = 16384  # a block's columns: its rows stay in cache, and float32 sums stay short
_ROWS = 256


def gram(stack: Tensor) -> Tensor:
    """Return W Wᵀ, float64 [n, n]. Only the lower half is multiplied."""
    n = stack.shape[0]
    product = torch.zeros(n, n, dtype=torch.float64, device=stack.device)
    for block in _blocks(stack.shape[1], _COLUMNS):
        panel = stack[:, block]
        for rows in _blocks(n, _ROWS):
            product[rows, : rows.stop] += panel[rows] @ panel[: rows.stop].T
    return product.tril() + product.tril(-1).T


def forward(stack: Tensor, direction: Tensor) -> Tensor:
    """Return W v for v [N] float32, float64 [n]."""
    result = torch.zeros(stack.shape[0], dtype=torch.float64, device=stack.device)
    for block in _blocks(stack.shape[1], _COLUMNS):
        result += stack[:, block] @ direction[block]
    return result


def backward(stack: Tensor, weights: Tensor) -> Tensor:
    """Return Wᵀ y for y [..., n], float32 [..., N]."""
    shape = (*weights.shape[:-1], stack.shape[1])
    total = torch.zeros(shape, dtype=torch.float64, device=stack.device)
    for block in _blocks(stack.shape[0], _ROWS):
        total += weights[..., block].to(stack.dtype) @ stack[block]
    return total.to(stack.dtype)


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
