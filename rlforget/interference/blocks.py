"""Corrections of blocks: what one rank holds of a tensor is rounded as the whole would be."""

from __future__ import annotations

from torch import Tensor

from rlforget.weights.box import Box
from rlforget_kernels.subtract import foreach_subtract_, subtract_


def subtract_block_(weight: Tensor, u: Tensor, box: Box | None, *, seed: int, offset: int) -> None:
    """Do what `subtract_` does, in place, with the random bits that the block's coordinates have in the whole tensor.

    Args:
        weight: The block, or the whole tensor.
        u: float32, of its shape.
        box: Where the block lies; None: it is the whole.
        seed: Seed of the stochastic rounding.
        offset: Where the whole tensor begins among all coordinates.
    """
    if box is None or box.is_whole:
        subtract_(weight, u, seed=seed, offset=offset)
        return
    flat, step = weight.reshape(-1), u.reshape(-1)
    runs = list(box.runs())
    foreach_subtract_(
        [flat[here] for here, _ in runs],
        [step[here] for here, _ in runs],
        seed,
        [offset + there.start for _, there in runs],
    )
    if flat.data_ptr() != weight.data_ptr():  # it was not contiguous
        weight.copy_(flat.view(weight.shape))
