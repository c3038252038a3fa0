"""`gradient_gram_` with numba."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.gradient_gram import explicit_cpu, pairwise_cpu, tokens_cpu
from rlforget_kernels.gradient_gram.blocks import add_by_blocks, chosen_form
from rlforget_kernels.gradient_gram.positions_cpu import Positions, positions


def gradient_gram_(
    gram: Tensor,
    inputs: Tensor,
    gradients: Tensor,
    mask: Tensor | None = None,
    other_inputs: Tensor | None = None,
    other_gradients: Tensor | None = None,
    other_mask: Tensor | None = None,
    form: str = "auto",
) -> None:
    """See `rlforget_kernels.gradient_gram`."""
    rows, columns = positions(inputs, gradients, mask), None
    if other_inputs is not None and other_gradients is not None:
        columns = positions(other_inputs, other_gradients, other_mask)
    add_by_blocks(gram, rows, columns, lambda sides: _product(sides, form))


def _product(sides: tuple[Positions, ...], form: str) -> Tensor:
    """Return the inner products of one side's samples, of which the lower half counts, or those of two sides."""
    first, last = sides[0], sides[-1]
    if 0 in (first.total, last.total, *first.sizes):
        return torch.zeros(first.samples, last.samples, dtype=torch.float64)
    if not last.inputs.dtype.is_floating_point:
        return tokens_cpu.gram(sides)
    if not first.inputs.dtype.is_floating_point or chosen_form(sides, form) == "pairwise":
        return pairwise_cpu.gram(sides)
    return explicit_cpu.gram(sides)
