"""`low_rank`: the leading singular triplets of after − before, for lists of pairs, without storing the difference.

No operator of its own, but `delta_matmul`, which is one, with QR and SVD of narrow matrices: a randomised range finder
with power iterations.

Source: N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
arXiv:0909.4061: algorithm 4.4 (subspace iteration), section 5.1 (from range to SVD), lemma 4.1 (spectral bound).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlforget_kernels.common.hashing import random_words, shift_right
from rlforget_kernels.common.pair_checks import LARGEST_RANK, require_equal_lengths, require_pair
from rlforget_kernels.delta_matmul import delta_matmul

_PROBES = 10
"""Random vectors that the spectral bound is taken from."""
_HIDDEN = {torch.float32: 2.0**-20, torch.float64: 2.0**-44}
"""The share of an energy that the rounding of its sums may hide."""
_STORED = 64 << 20
"""Bytes of narrow matrices of the pairs that are worked on at a time, if they are more than one."""


class LowRank(NamedTuple):
    """The leading singular triplets of a difference δ, and how well U diag(s) Vᵀ approximates it.

    Attributes:
        u: [out, rank], orthonormal columns.
        s: [rank], descending.
        v: [in, rank], orthonormal columns.
        error_bound: float64 [2], upper bounds of the norms of δ − U diag(s) Vᵀ: of the Frobenius norm, which follows
            from energies alone, √(‖δ‖² − ‖s‖²), to which comes what rounding may hide, 2⁻¹⁰ · ‖δ‖ (2⁻²² · ‖δ‖ in
            float64) where nothing else is left; and of the spectral norm, right with a probability of 1 − 10**-10.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    error_bound: Tensor


def low_rank(
    before: list[Tensor],
    after: list[Tensor],
    rank: int,
    oversampling: int = 8,
    iterations: int = 2,
    seed: int = 0,
    float64: bool = False,
) -> list[LowRank]:
    """Find the `rank` leading singular triplets of every after − before.

    Triplets are exact, but for rounding, where the difference has no larger rank than `rank + oversampling`. Else they
    are the better the faster singular values fall, and the more iterations there are.

    Args:
        before: Matrices [out, in] of any strides: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or float64.
        after: Matrices of the shapes and dtypes of `before`.
        rank: From 1 to the smaller side of every pair.
        oversampling: Directions that are searched beyond `rank`, and dropped at the end; 246 with `rank` at most.
        iterations: Power iterations, each with orthonormal bases.
        seed: Of the Gaussian test matrix, which is a hash of (seed, coordinate): the same on every device, and for
            every pair with as many columns.
        float64: Whether to compute in float64.

    Returns:
        One `LowRank` a pair, float32 (float64 with `float64`). Signs are such that the largest entry of each column of
        u, the first of them where several are, is positive.

    Raises:
        TypeError: for other dtypes.
        ValueError: for a rank that is too large, lists or shapes that do not fit, or a difference that is not finite.

    Bytes moved, N coordinates of b bytes a pair: 2bN in each of 2 · iterations + 2 passes.
    """
    require_equal_lengths("low_rank", before=before, after=after)
    for k, (old, new) in enumerate(zip(before, after, strict=True)):
        require_pair("low_rank", k, old, new)
        if not 1 <= rank <= min(old.shape):
            raise ValueError(
                f"low_rank: expected a rank from 1 to {min(old.shape)}, the smaller side of before[{k}]; found {rank}"
            )
    if oversampling < 0 or rank + oversampling + _PROBES > LARGEST_RANK:
        raise ValueError(
            f"low_rank: expected oversampling >= 0 with rank + oversampling at most {LARGEST_RANK - _PROBES}; "
            f"found {oversampling} with rank {rank}"
        )
    if iterations < 0:
        raise ValueError(f"low_rank: expected iterations >= 0; found {iterations}")
    size = 8 if float64 else 4
    sizes = [size * sum(old.shape) * (rank + oversampling + _PROBES) for old in before]
    found: list[LowRank] = []
    for group in _groups(sizes):
        sides = before[group], after[group]
        found += _low_rank(*sides, rank, oversampling, iterations, seed, float64, group.start)
    return found


def _low_rank(
    before: list[Tensor],
    after: list[Tensor],
    rank: int,
    oversampling: int,
    iterations: int,
    seed: int,
    float64: bool,
    position: int,
) -> Iterator[LowRank]:
    """Do it for a few pairs, the first of which is number `position` of the caller's."""
    transposed = [old.mT for old in before], [new.mT for new in after]
    widths = [min(rank + oversampling, *old.shape) for old in before]
    drawn = {
        columns: gaussian(columns, rank + oversampling + _PROBES, seed, float64).to(before[0].device)
        for columns in {old.shape[1] for old in before}
    }
    # The probes are the leading columns: they have no part in the range, so they may judge it.
    tests = [drawn[old.shape[1]][:, : _PROBES + width] for old, width in zip(before, widths, strict=True)]
    images, energy = delta_matmul(before, after, tests, float64)
    for k, square in enumerate(energy.tolist()):
        if not math.isfinite(square):
            raise ValueError(
                f"low_rank: before[{position + k}], after[{position + k}]: expected a finite difference; found NaN or "
                "infinity. Repair the tensors first."
            )
    ranges = _orthonormal([image[:, _PROBES:] for image in images])
    for _ in range(iterations):
        co_ranges = _orthonormal(delta_matmul(*transposed, ranges, float64)[0])
        ranges = _orthonormal(delta_matmul(before, after, co_ranges, float64)[0])
    projected = delta_matmul(*transposed, ranges, float64)[0]
    for basis, held, test, image, square in zip(ranges, projected, tests, images, energy, strict=True):
        u, s, v = _triplets(basis, held, rank)
        left = (square - s.double().square().sum()).clamp(min=0)
        frobenius = (left + _HIDDEN[s.dtype] * square).sqrt()
        missed = image[:, :_PROBES] - u @ (s[:, None] * (v.mT @ test[:, :_PROBES]))
        spectral = 10 * math.sqrt(2 / math.pi) * missed.double().norm(dim=0).max()
        yield LowRank(u, s, v, torch.stack([frobenius, torch.minimum(spectral, frobenius)]))


def gaussian(rows: int, columns: int, seed: int, float64: bool) -> Tensor:
    """Draw a matrix of independent standard normal numbers, on the CPU: coordinate (i, j) from word j · rows + i."""
    drawn = torch.empty(columns, rows, dtype=torch.float64 if float64 else torch.float32)
    for j, target in enumerate(drawn):
        words = random_words(seed, j * rows, rows)
        # Box and Muller's transform of the word's two halves, the first of them never 0.
        radius = (-2 * ((shift_right(words, 32) + 0.5) * 2.0**-32).log()).sqrt()
        target.copy_(radius * ((words & 0xFFFFFFFF) * (2.0**-31 * math.pi)).cos())
    return drawn.mT


def _groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut positions into runs whose sizes add up to `_STORED` at most, or of one."""
    start, total = 0, 0
    for position, size in enumerate(sizes):
        if position > start and total + size > _STORED:
            yield slice(start, position)
            start, total = position, 0
        total += size
    yield slice(start, len(sizes))


def _orthonormal(matrices: list[Tensor]) -> list[Tensor]:
    """Orthonormal bases of ranges that hold those of `matrices`; equal shapes are factored together."""
    shapes: dict[torch.Size, list[int]] = {}
    for position, matrix in enumerate(matrices):
        shapes.setdefault(matrix.shape, []).append(position)
    bases = list(matrices)
    for members in shapes.values():
        together = torch.linalg.qr(torch.stack([matrices[member] for member in members])).Q
        for member, basis in zip(members, together, strict=True):
            bases[member] = basis.contiguous()
    return bases


def _triplets(basis: Tensor, projected: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of basis · projectedᵀ."""
    across, small = torch.linalg.qr(projected)
    left, s, right = torch.linalg.svd(small)  # projected = across · left · diag(s) · right
    u, v = basis @ right.mT[:, :rank], across @ left[:, :rank]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * signs, s[:rank], v * signs
