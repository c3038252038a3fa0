"""The geometry of an update, matrix by matrix: how it lies to the matrix that it changes.

Sources of the measures: the rank of an update from arXiv 2505.11711; principal angles, the normalised spectral shift,
and the overlap with principal and with low-magnitude weights from arXiv 2511.08567 and 2606.07082. The shuffled update
that gives each its chance level is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.counting import counted
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.delta import Delta
from rlforget.delta.layers import MemoryLayer
from rlforget.delta.overlaps import SetOverlap
from rlforget.delta.spectra import Spectrum, angles, exact, leading, shift, shuffled
from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.weights import Weights, WeightsLike, open_weights, pair_up
from rlforget_kernels.common.arithmetic import widened
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.select_top import select_top_each

EXACT = 512
"""The smaller side up to which a matrix is decomposed exactly, where nothing else is said."""
_LARGEST_RANK = 200  # what the range finder has room for
_BYTES_AT_ONCE = 64 << 20  # of one side, of matrices that are decomposed together


@dataclass(frozen=True)
class Turn:
    """What an update does to the spectrum of its matrix.

    Attributes:
        shift: ‖σ(W₊) − σ(W₀)‖ / ‖σ(W₀)‖.
        left: Principal angles between the leading left singular subspaces of W₀ and W₊, in radians, ascending; their
            cosines are σᵢ(U₀ᵀU₊).
        right: Likewise of the right ones.
    """

    shift: float
    left: tuple[float, ...]
    right: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest angle on either side."""
        return max(*self.left, *self.right)


@dataclass(frozen=True)
class MatrixGeometry:
    """How an update lies to its matrix W₀.

    Attributes:
        shape: (out, in).
        dtype: The stored dtype.
        norm: ‖W₀‖, Frobenius.
        update_norm: ‖δ‖.
        stable_rank: ‖δ‖² / ‖δ‖₂², with ‖δ‖₂ the largest singular value.
        stable_rank_by_chance: That of a matrix of independent entries of this shape, out·in / (√out + √in)².
        rank: The number of δ's singular values above max(out, in) · 2**-52 times the largest; None of a large matrix.
        turn: What δ does to the singular values and subspaces of W₀.
        turn_by_chance: What it does with its rows and columns shuffled and their signs drawn, see `spectra.shuffled`.
        values: How many singular values `turn.shift` is over: all, or the leading ones of a large matrix.
        error: Each singular value is known to this share of the largest, rounding apart; 0 where all are exact.
        energy: The share of ‖δ‖² between the leading left and right singular subspaces, ‖U₀ᵀδV₀‖² / ‖δ‖².
        energy_by_chance: rank² / (out · in).
        changed_principal: Overlap of the changed coordinates with the principal weights, the largest entries of W₀'s
            reconstruction from its leading singular vectors. `of_first` beside `of_first_by_chance` is to be read.
        changed_low: Their overlap with the low-magnitude weights, the smallest entries of W₀. (In bfloat16 the smaller
            a weight is, the smaller the step that it can take: this alone makes small weights change more often.)
        largest_principal: As `changed_principal`, of the coordinates where the update is largest.
        largest_low: As `changed_low`, of those.
    """

    shape: tuple[int, int]
    dtype: str
    norm: float
    update_norm: float
    stable_rank: float
    stable_rank_by_chance: float
    rank: int | None
    turn: Turn
    turn_by_chance: Turn
    values: int
    error: float
    energy: float
    energy_by_chance: float
    changed_principal: SetOverlap
    changed_low: SetOverlap
    largest_principal: SetOverlap
    largest_low: SetOverlap

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON."""
        overlaps = {name: value.to_dict() for name, value in vars(self).items() if isinstance(value, SetOverlap)}
        return {**asdict(self), "shape": list(self.shape), **overlaps}


@dataclass(frozen=True)
class Geometry:
    """The geometry of every matrix that changed.

    Attributes:
        matrices: By the tensor's name; the matrices of a tensor of three dimensions have their number behind it.
        share: α, the share of a matrix's entries that is called principal, low, or largest.
    """

    matrices: dict[str, MatrixGeometry]
    share: float

    def table(self) -> str:
        """Return a table for people, a line a matrix."""
        from rlforget.delta.geometry_table import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON."""
        return {"share": self.share, "matrices": {name: one.to_dict() for name, one in self.matrices.items()}}


@dataclass(frozen=True)
class _Matrix:
    name: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class _Settings:
    rank: int
    share: float
    exact: int
    seed: int


def geometry(
    before: WeightsLike,
    after: WeightsLike | Delta,
    *,
    rank: int = 16,
    share: float = 0.1,
    exact: int = EXACT,
    only: Callable[[str], bool] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Geometry:
    """Measure how an update lies to the matrices that it changes.

    Matrices whose smaller side is at most `exact` are decomposed exactly, in float64, those of one shape together; of
    larger ones the leading singular triplets are found by a randomised range finder, in float64 too, in a few passes
    over the matrix, and the error is bounded.

    Args:
        before: The weights before.
        after: The weights after, or the delta that leads to them.
        rank: How many leading singular vectors span the subspaces; at most half the smaller side of a matrix, since
            larger subspaces meet whatever they are. A subspace is only as stable as the gap behind its last vector is
            wide.
        share: α, the share of a matrix's entries that counts as principal, as low, and as largest.
        exact: The smaller side up to which decompositions are exact.
        only: Says of a tensor's name whether it counts.
        seed: Of the shuffled update and of the randomised decompositions.
        device: Where to compute; by default where a matrix lies.

    Returns:
        The geometry of each floating-point matrix that changed; tensors of three dimensions are stacks of matrices.
        Other tensors, and those that changed their shape or dtype, are left out.

    Raises:
        ConfigError: A rank, a share or a size out of range.
        LayoutError: The two are of different models, or none of the matrices that count changed.
        NonFiniteError: NaN or infinity in a matrix; the message names it.
        WrongBaseError: `after` is a delta that does not begin at `before`.
    """
    if not 1 <= rank <= _LARGEST_RANK:
        raise ConfigError("rank", expected=f"1 to {_LARGEST_RANK}", found=str(rank), fix="Ask for fewer vectors.")
    if not 0 < share < 1:
        raise ConfigError("share", expected="a number between 0 and 1", found=str(share), fix="Write 10% as 0.1.")
    old = open_weights(before)
    new = ComposedWeights(old, [MemoryLayer(after)]) if isinstance(after, Delta) else open_weights(after)
    settings = _Settings(rank, share, exact, seed)
    found: dict[str, MatrixGeometry] = {}
    names: list[str] = []
    for batch in _batches(_matrices(old, new, only, device), names):
        found |= zip((matrix.name for matrix in batch), _measure(batch, settings), strict=True)
    if not found:
        raise LayoutError(
            new.description,
            expected="a matrix that differs from the one before",
            found="none among those that count",
            fix="Compare weights between which something was trained.",
        )
    return Geometry({name: found[name] for name in names}, share)


def _matrices(
    old: Weights, new: Weights, only: Callable[[str], bool] | None, device: torch.device | str | None
) -> Iterator[_Matrix]:
    """Read the matrices that changed, one tensor at a time."""
    for pair in counted("tensors", list(pair_up(old, new))):
        meta = old.meta(pair.before)
        wanted = meta.dtype.is_floating_point and meta.numel and (only is None or only(pair.name))
        if not wanted or len(meta.shape) not in (2, 3):
            continue
        before, after = old.tensor(pair.before).detach(), new.tensor(pair.after).detach()
        where = device or (after.device if before.device.type == "cpu" else before.device)
        before, after = before.to(where), after.to(where)
        stacked = before.dim() == 3
        sides = zip(before, after, strict=True) if stacked else ((before, after),)
        for number, (one, other) in enumerate(sides):
            name = f"{pair.name}[{number}]" if stacked else pair.name
            if torch.equal(as_bits(one), as_bits(other)):
                continue
            for side in (one, other):
                if not bool(widened(side).isfinite().all()):
                    raise NonFiniteError(
                        f"the tensor {name!r}",
                        expected="finite numbers",
                        found="NaN or Inf",
                        fix="Look for what made it so; a matrix that is not finite has no spectrum.",
                    )
            yield _Matrix(name, one, other)


def _batches(matrices: Iterable[_Matrix], names: list[str]) -> Iterator[list[_Matrix]]:
    """Put matrices of one shape and dtype together as they come, in bounded memory; note all names, in order."""
    waiting: dict[tuple[torch.Size, torch.dtype], list[_Matrix]] = {}
    for matrix in matrices:
        names.append(matrix.name)
        batch = waiting.setdefault((matrix.before.shape, matrix.before.dtype), [])
        batch.append(matrix)
        if sum(one.before.numel() * 8 for one in batch) >= _BYTES_AT_ONCE:
            yield waiting.pop((matrix.before.shape, matrix.before.dtype))
    yield from waiting.values()


def _measure(batch: list[_Matrix], settings: _Settings) -> Iterator[MatrixGeometry]:
    out, width = batch[0].before.shape
    smaller = min(out, width)
    rank = max(1, min(settings.rank, smaller // 2))
    before, after = (torch.stack(side).double() for side in zip(*((m.before, m.after) for m in batch), strict=True))
    change = after - before
    sides = before, after, before + shuffled(change, settings.seed)
    if smaller <= settings.exact:
        known = [exact(side, rank) for side in sides]
        updates = list(torch.linalg.svdvals(change))
    else:
        known = [leading(side, rank, settings.seed) for side in sides]
        updates = [spectrum.values for spectrum in leading(change, 1, settings.seed)]
    for matrix, difference, values, old, new, drawn in zip(batch, change, updates, *known, strict=True):
        square = float(difference.square().sum())
        inside = float((old.left.mT @ difference @ old.right).square().sum())
        yield MatrixGeometry(
            shape=(out, width),
            dtype=str(matrix.before.dtype).removeprefix("torch."),
            norm=float(torch.linalg.matrix_norm(matrix.before.double())),
            update_norm=square**0.5,
            stable_rank=_ratio(square, float(values[0]) ** 2),
            stable_rank_by_chance=out * width / (out**0.5 + width**0.5) ** 2,
            rank=_rank(values, max(out, width)) if smaller <= settings.exact else None,
            turn=_turn(old, new),
            turn_by_chance=_turn(old, drawn),
            values=old.values.numel(),
            error=max(_ratio(side.error, float(side.values[0])) for side in (old, new)),
            energy=_ratio(inside, square),
            energy_by_chance=rank**2 / (out * width),
            **_overlaps(matrix, difference, old, settings.share),
        )


def _ratio(part: float, whole: float) -> float:
    """Divide; 0 / 0, e.g. of −0 that became 0, is 0."""
    return part / whole if whole else 0.0


def _rank(values: Tensor, larger: int) -> int:
    return int((values > larger * torch.finfo(torch.float64).eps * values[0]).sum())


def _turn(before: Spectrum, after: Spectrum) -> Turn:
    left, right = angles(before.left, after.left), angles(before.right, after.right)
    return Turn(shift(before, after), tuple(left.tolist()), tuple(right.tolist()))


def _overlaps(matrix: _Matrix, difference: Tensor, spectrum: Spectrum, share: float) -> dict[str, SetOverlap]:
    """Compare where a matrix changed with where its principal and its small weights are."""
    numel = matrix.before.numel()
    count = max(1, round(share * numel))
    size = difference.abs().float()
    scores = [spectrum.reconstruction().abs(), widened(matrix.before).abs().float(), size]
    counts = [count, numel - count, min(count, int(torch.count_nonzero(size)))]
    principal, not_low, largest = (
        torch.zeros(numel, dtype=torch.bool, device=size.device).index_fill_(0, picked, True)
        for picked in select_top_each(scores, counts)
    )
    changed = as_bits(matrix.before) != as_bits(matrix.after)

    def overlap(one: Tensor, other: Tensor) -> SetOverlap:
        return SetOverlap(numel, int(one.sum()), int(other.sum()), int((one & other).sum()))

    return {
        "changed_principal": overlap(changed, principal),
        "changed_low": overlap(changed, ~not_low),
        "largest_principal": overlap(largest, principal),
        "largest_low": overlap(largest, ~not_low),
    }
