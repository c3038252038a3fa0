"""`conflict_score`: one non-negative number a coordinate, how much undoing it should help, with its histogram."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator

SCORES: dict[str, tuple[str, ...]] = {
    "fisher": ("earlier",),
    "taylor": ("earlier", "direction"),
    "opposed": ("direction",),
    "two_fisher": ("earlier", "later"),
    "subspace": ("direction",),
    "magnitude": (),
    "random": (),
}
"""The scores, with the arguments each one needs beside `delta`."""


def _check(delta: Tensor, score: str, earlier: Tensor | None, later: Tensor | None, direction: Tensor | None) -> None:
    if score not in SCORES:
        raise ValueError(f"conflict_score: expected a score of {', '.join(SCORES)}; found {score!r}")
    given = {"delta": delta, "earlier": earlier, "later": later, "direction": direction}
    for name in SCORES[score]:
        if given[name] is None:
            raise ValueError(f"conflict_score: expected {name}, which score={score!r} needs; found None")
    for name, tensor in given.items():
        if tensor is None:
            continue
        if tensor.dtype is not torch.float32:
            raise TypeError(f"conflict_score: {name}: expected float32; found {tensor.dtype}")
        if tensor.shape != delta.shape:
            raise ValueError(
                f"conflict_score: {name}: expected the shape of delta, {tuple(delta.shape)}; "
                f"found {tuple(tensor.shape)}"
            )


def _fake(
    delta: Tensor,
    score: str,
    earlier: Tensor | None = None,
    later: Tensor | None = None,
    direction: Tensor | None = None,
    damping: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    _check(delta, score, earlier, later, direction)
    return delta.new_empty(delta.shape), delta.new_empty(1 << 15, dtype=torch.int64)


@operator(_fake)
def conflict_score(
    delta: Tensor,
    score: str,
    earlier: Tensor | None = None,
    later: Tensor | None = None,
    direction: Tensor | None = None,
    damping: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Score coordinates, and count the scores by their leading bits as `select_top` needs it.

    With d = delta, F_A = earlier, F_B = later, g = direction, every operation rounded to float32 in the order written:

    | score | formula | direction |
    | --- | --- | --- |
    | `fisher` | F_A · d · d | |
    | `taylor` | max(0, g · d + 0.5 · (F_A · d · d)) | the earlier domain's mean gradient |
    | `opposed` | max(0, −(g · d)), that is abs(g · d) where the signs differ | the earlier domain's own update |
    | `two_fisher` | F_A · d · d / (F_B + damping); 0/0 is 0 | |
    | `subspace` | max(0, g · d) | the conflict-subspace solution u |
    | `magnitude` | abs(d) | |
    | `random` | uniform in [0, 1), a hash of (seed, offset + i) | |

    What is below zero or −0.0 becomes +0.0 and a NaN becomes 0x7FC00000, so the bits of scores order as integers.

    Args:
        delta: float32, any shape and strides: after − before at the coordinates to score.
        score: A key of `SCORES`.
        earlier: float32 like `delta`: diagonal Fisher of the earlier domain.
        later: float32 like `delta`: diagonal Fisher of the later domain.
        direction: float32 like `delta`: see the table.
        damping: ε · mean(F_B) for `two_fisher`; taken as float32.
        seed: Of `random`.
        offset: Index of the first coordinate in the whole model, so that shards draw what the whole would draw.

    Returns:
        scores: float32 of the shape of `delta`.
        histogram: int64 [32768], counts of `bits(score) >> 16`. Infinity is in bin 0x7F80, NaN in 0x7FC0. Histograms of
        several tensors add up.

    Raises:
        ValueError: for an unknown score, an argument that the score needs and that is missing, shapes that differ.
        TypeError: for a dtype other than float32.

    Bytes moved, k coordinates: 4k read for each tensor the formula names, 4k written.

    Source: `fisher` and `taylor` are the terms of the second-order expansion of the earlier domain's loss, with the
    Fisher diagonal for the Hessian; `opposed` follows arXiv:2606.02398 (reconstructed); `two_fisher` and `subspace` are
    this project's own.
    """
    _check(delta, score, earlier, later, direction)
    needed = SCORES[score]
    inputs = {"earlier": earlier, "later": later, "direction": direction}
    used = [tensor if name in needed else None for name, tensor in inputs.items()]
    kernels = backend(__name__, delta, *used)
    result: tuple[Tensor, Tensor] = kernels.conflict_score(delta, score, *used, damping, seed, offset)
    return result
