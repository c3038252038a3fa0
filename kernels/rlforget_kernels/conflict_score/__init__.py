"""`conflict_score`: one non-negative number a coordinate, how much undoing it should help, with its histogram."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.dispatch import backend, operator
from rlforget_kernels.common.hashing import consecutive
from rlforget_kernels.common.score_bits import LEADING_BINS

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
    return delta.new_empty(delta.shape), delta.new_empty(LEADING_BINS, dtype=torch.int64)


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
        histogram: int64 [4096], counts of `bits(score) >> 19`. Infinity is in bin 0xFF0, NaN in 0xFF8. Histograms of
        several tensors add up.

    Raises:
        ValueError: for an unknown score, an argument that the score needs and that is missing, shapes that differ.
        TypeError: for a dtype other than float32.

    Bytes moved, k coordinates: 4k read for each tensor the formula names, 4k written.

    Source: `fisher` and `taylor` are the terms of the second-order expansion of the earlier domain's loss, with the
    Fisher diagonal for the Hessian; `opposed` follows arXiv:2606.02398 (reconstructed); `two_fisher` and `subspace` are
    this project's own.
    """
    (scores,), histogram = _run([delta], score, [earlier], [later], [direction], damping, seed, [offset])
    return scores, histogram


def _run(
    deltas: list[Tensor],
    score: str,
    earlier: Sequence[Tensor | None],
    later: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    damping: float,
    seed: int,
    offsets: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    for delta, *given in zip(deltas, earlier, later, directions, strict=True):
        _check(delta, score, *given)
    if not deltas:
        return [], torch.zeros(LEADING_BINS, dtype=torch.int64)
    lists = {"earlier": earlier, "later": later, "direction": directions}
    nothing: list[Tensor | None] = [None] * len(deltas)
    used = [tensors if name in SCORES[score] else nothing for name, tensors in lists.items()]
    kernels = backend(__name__, *deltas, *(tensor for tensors in used for tensor in tensors))
    result: tuple[list[Tensor], Tensor]
    result = kernels.foreach_conflict_score(deltas, score, *used, damping, seed, offsets)
    return result


def _lists(
    deltas: list[Tensor],
    earlier: list[Tensor | None],
    later: list[Tensor | None],
    directions: list[Tensor | None],
    offsets: list[int] | None,
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None], list[int]]:
    """What stands for the lists that are left empty, and for no offsets.

    Raises:
        ValueError: for lists of different lengths.
    """
    nothing: list[Tensor | None] = [None] * len(deltas)
    earlier, later, directions = (given or nothing for given in (earlier, later, directions))
    offsets = consecutive(deltas) if offsets is None else offsets
    lengths = [len(deltas), len(earlier), len(later), len(directions), len(offsets)]
    if len(set(lengths)) > 1:
        raise ValueError(
            "foreach_conflict_score: expected deltas, earlier, later, directions and offsets of one length; "
            f"found {lengths}"
        )
    return earlier, later, directions, offsets


def _fake_list(
    deltas: list[Tensor],
    score: str,
    earlier: list[Tensor | None],
    later: list[Tensor | None],
    directions: list[Tensor | None],
    damping: float = 0.0,
    seed: int = 0,
    offsets: list[int] | None = None,
) -> tuple[list[Tensor], Tensor]:
    earlier, later, directions, _ = _lists(deltas, earlier, later, directions, offsets)
    for delta, *given in zip(deltas, earlier, later, directions, strict=True):
        _check(delta, score, *given)
    histogram = (deltas[0] if deltas else torch.empty(0)).new_empty(LEADING_BINS, dtype=torch.int64)
    return [delta.new_empty(delta.shape) for delta in deltas], histogram


@operator(_fake_list)
def foreach_conflict_score(
    deltas: list[Tensor],
    score: str,
    earlier: list[Tensor | None],
    later: list[Tensor | None],
    directions: list[Tensor | None],
    damping: float = 0.0,
    seed: int = 0,
    offsets: list[int] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Do what `conflict_score` does for every delta of a list, in one launch group or one parallel region.

    Args:
        deltas: Tensors on one device, of any mix of shapes and strides.
        score: For all.
        earlier: One a delta, or empty where the score needs none.
        later: One a delta, or empty.
        directions: One a delta, or empty.
        damping: For all.
        seed: For all.
        offsets: One a delta. None: each delta follows on the one before it in the list, the first at 0.

    Returns:
        The scores of each delta, and one histogram: the sum of those that `conflict_score` returns of each.

    Raises:
        TypeError: as `conflict_score`.
        ValueError: as `conflict_score`, and for lists of different lengths.

    Bytes moved: see `conflict_score`.
    """
    earlier, later, directions, offsets = _lists(deltas, earlier, later, directions, offsets)
    return _run(deltas, score, earlier, later, directions, damping, seed, offsets)
