"""The coordinates that score highest: by one threshold, by budgets a layer or a tensor, or within a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rlforget.delta.naming import layer_of
from rlforget.errors import CoordinateError, UnknownNameError
from rlforget.interference.coordinates import Coordinates
from rlforget.interference.selection_across import select_across
from rlforget.weights.sharding import together
from rlforget_kernels.select_top import select_top

if TYPE_CHECKING:
    from rlforget.delta import Delta

Budget = Literal["model", "layer", "tensor"]

_GROUP_OF: dict[str, Callable[[str], object]] = {
    "model": lambda name: None,
    "layer": layer_of,
    "tensor": lambda name: name,
}


@dataclass(frozen=True)
class Conflict:
    """Scores of a delta's coordinates.

    Attributes:
        delta: The delta that was scored.
        score: The name of the score.
        scores: For each changed tensor, float32 [changed here], non-negative, in the order of the delta's indices.
        histogram: int64 [4096], counts of the scores' bits >> 19 over all tensors, and ranks where they are spread.
    """

    delta: Delta
    score: str
    scores: dict[str, Tensor]
    histogram: Tensor

    @property
    def changed(self) -> int:
        """How many coordinates were scored, on all ranks."""
        return self.delta.changed

    def top(
        self,
        fraction: float | None = None,
        *,
        count: int | None = None,
        per: Budget = "model",
        within: Coordinates | None = None,
    ) -> Coordinates:
        """Return the coordinates that score highest.

        Ties go to the earlier tensor, then to the lower index. A coordinate that scores 0 is never picked, so fewer
        than asked for come back where fewer score above it. Of a model that is spread over ranks, every rank has to
        call this, and gets those of the model's that it holds.

        Args:
            fraction: How many, as a share in (0, 1] of all the model's coordinates, changed or not. More than the
                delta changed gives all that it changed.
            count: How many, at most as many as the delta changed.
            per: "model": by one threshold over all tensors. "layer", "tensor": each gets the same share of its
                coordinates, to one coordinate; tensors outside the layers are a layer of their own. What one cannot
                use, because less of it changed, no other gets.
            within: Pick only from these, for instance from the routes that two domains share.

        Raises:
            CoordinateError: A fraction or count out of range, or not exactly one of the two; or `within` names a tensor
                that the delta does not hold.
            UnknownNameError: `per` is no such budget.
        """
        groups, budgets, scores = together(lambda: self._asked(fraction, count, per, within), self.delta.sharding)
        alike = len(groups) == 1 and within is None  # then the histogram is known
        picked: dict[str, Tensor] = {}
        for (names, _), budget in zip(groups, budgets, strict=True):
            some = {name: scores[name] for name in names}
            histogram = self.histogram if alike else None
            if some and self.delta.sharding is not None:
                picked |= select_across(self.delta, some, budget, histogram)
            elif some:
                wanted = min(budget, sum(int(torch.count_nonzero(score)) for score in some.values()))
                picked |= zip(names, select_top(list(some.values()), wanted, histogram), strict=True)
        return Coordinates(
            {
                name: self.delta[name].indices[picked[name]].to(torch.int64)
                for name in self.scores
                if picked[name].numel()
            }
        )

    def _asked(
        self, fraction: float | None, count: int | None, per: Budget, within: Coordinates | None
    ) -> tuple[list[tuple[list[str], int]], list[int], dict[str, Tensor]]:
        """Return the groups that share a budget, their budgets, and the scores to pick from."""
        groups = self._groups(per)
        budgets = apportioned(self._count(fraction, count), [numel for _, numel in groups])
        return groups, budgets, self.scores if within is None else self._only(within)

    def _groups(self, per: Budget) -> list[tuple[list[str], int]]:
        """Return the changed tensors that share a budget, and how many coordinates they and their like have."""
        if per not in _GROUP_OF:
            raise UnknownNameError(
                f"per {per!r}", expected=f"one of {', '.join(_GROUP_OF)}", found=repr(per), fix="Check the spelling."
            )
        groups: dict[object, tuple[list[str], int]] = {}
        for name, tensor in self.delta.items():
            group = _GROUP_OF[per](name)
            names, numel = groups.get(group, ([], 0))
            groups[group] = ([*names, name] if name in self.scores else names, numel + tensor.numel)
        return list(groups.values())

    def _only(self, within: Coordinates) -> dict[str, Tensor]:
        """Return the scores with 0 for what is not in `within`."""
        for name in within:
            if name not in self.delta:
                raise CoordinateError(
                    f"the coordinates of {name!r}",
                    expected="tensors that the delta holds",
                    found="one that it does not hold",
                    fix="Take them from the routes of this very model.",
                )
        return {
            name: score * torch.isin(self.delta[name].indices.to(torch.int64), within[name].cpu()).to(score)
            if name in within
            else torch.zeros_like(score)
            for name, score in self.scores.items()
        }

    def _count(self, fraction: float | None, count: int | None) -> int:
        if (fraction is None) == (count is None):
            raise CoordinateError(
                "conflict.top",
                expected="either fraction= or count=",
                found="both" if fraction is not None else "neither",
                fix="Give one of them.",
            )
        if fraction is not None:
            if not 0.0 < fraction <= 1.0:
                raise CoordinateError(
                    "fraction", expected="a number in (0, 1]", found=repr(fraction), fix="Write 2% as 0.02."
                )
            return max(1, round(fraction * self.delta.numel))
        assert count is not None
        if not 0 < count <= self.changed:
            raise CoordinateError(
                "count",
                expected=f"between 1 and {self.changed}, what the delta changed",
                found=repr(count),
                fix="Ask for fewer coordinates.",
            )
        return count


def apportioned(total: int, sizes: list[int]) -> list[int]:
    """Split `total` in proportion to `sizes`, by largest remainders; ties go to the first."""
    whole = sum(sizes)
    if not whole:
        return [0] * len(sizes)
    shares = [total * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda k: -(total * sizes[k] % whole))
    for k in order[: total - sum(shares)]:
        shares[k] += 1
    return shares
