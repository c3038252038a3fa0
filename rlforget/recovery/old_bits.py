"""Rollback at coordinates: the old bits, or part of the way to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlforget.errors import ConfigError, LayoutError
from rlforget.interference.coordinates import Coordinates
from rlforget.recovery.norms import delta_square, difference, norm_share, square
from rlforget.recovery.undo import Rollback, RollbackReport
from rlforget.weights import Weights
from rlforget.weights.batching import batches, copied
from rlforget.weights.sharding import together
from rlforget.weights.undo import Live, SavedBits, all_or_nothing
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.rollback import foreach_rollback_

if TYPE_CHECKING:
    from rlforget.delta import Delta, TensorDelta

_COPIED = 1 << 24  # elements of weights whose elements do not lie in order, at a time


class Chosen(NamedTuple):
    """The coordinates chosen in one tensor, as int64 positions among those that the delta changed."""

    tensor: TensorDelta
    positions: Tensor


def choose(coordinates: Coordinates, delta: Delta, names: Mapping[str, str], strength: float) -> dict[str, Chosen]:
    """Group coordinates by the name of their tensor in the weights, where two of the delta's may be one, tied.

    Raises:
        ConfigError: A strength below 1 for a tensor of integers.
        CoordinateError: A coordinate that the delta did not change.
        LayoutError: Two tensors with different changes are one in the weights.
    """
    chosen: dict[str, Chosen] = {}
    for name, positions in coordinates.positions(delta).items():
        tensor = delta[name]
        check_partial(tensor, strength)
        target = names[tensor.name]
        if target in chosen:
            first, others = chosen[target]
            check_tied(target, first, tensor)
            tensor, positions = first, _union(others, positions)
        chosen[target] = Chosen(tensor, positions)
    return chosen


def check_partial(tensor: TensorDelta, strength: float) -> None:
    """Hold that a tensor can go part of the way, where it is to.

    Raises:
        ConfigError: It holds integers.
    """
    if strength != 1.0 and not tensor.dtype.is_floating_point:
        raise ConfigError(
            f"strength {strength:g} for tensor {tensor.name!r}",
            expected="a tensor of floating-point numbers",
            found=str(tensor.dtype),
            fix="Integers can only be put back whole: use strength 1.",
        )


def check_tied(target: str, first: TensorDelta, second: TensorDelta) -> None:
    """Hold that two tensors of the delta that are one in the weights changed alike.

    Raises:
        LayoutError: They did not.
    """
    if not first.same_patch(second):
        raise LayoutError(
            f"tensor {target!r}",
            expected=f"{first.name!r} and {second.name!r} apart, as the delta has them",
            found="one tied tensor, which had two different changes",
            fix="Untie the two first.",
        )


def put_back(source: Live, weights: Weights, delta: Delta, chosen: Mapping[str, Chosen], strength: float) -> Rollback:
    """Write θ ← θ − strength · δ at the chosen coordinates, rounded to nearest even; at strength 1 the old bits."""
    places = together(lambda: {to: _places(weights, to, one) for to, one in chosen.items()}, weights.sharding)
    whole = delta_square(delta)

    def write(saved: dict[str, SavedBits]) -> tuple[int, int, float]:
        entries, written, taken = 0, 0, 0.0
        saved.update((target, SavedBits(one.old, one.at)) for target, one in places.items())
        for here in batches(places.values(), lambda one: copied(one.weight), _COPIED, lambda one: one.weight.device):
            foreach_rollback_(
                [one.weight for one in here],
                [one.before for one in here],
                [one.at for one in here],
                [],
                strength=strength,
            )
        for target, (weight, at, _, old) in places.items():
            if not weights.counted_here(target):
                continue
            new = as_bits(weight).index_select(0, at)
            entries += at.numel()
            written += int((new != old).sum())
            taken += square(difference(old.view(weight.dtype), new.view(weight.dtype)))
        return entries, written, taken

    def end(told: Sequence[tuple[int, int, float]], saved: dict[str, SavedBits]) -> Rollback:
        entries, written, taken = map(sum, zip(*told, strict=True))
        return Rollback(source, saved, RollbackReport(int(entries), int(written), strength, norm_share(taken, whole)))

    return all_or_nothing(weights, write, end)


class _Places(NamedTuple):
    """What is needed to write one tensor: made for all of them before the first is written."""

    weight: Tensor
    at: Tensor  # flat indices
    before: Tensor  # the delta's before there
    old: Tensor  # the bits held there now


def _places(weights: Weights, target: str, one: Chosen) -> _Places:
    weight = weights.tensor(target)
    at = weights.places(target, one.tensor.indices[one.positions]).to(weight.device)
    before = one.tensor.before[one.positions].to(weight.device)
    return _Places(weight, at, before, as_bits(weight).index_select(0, at))


def _union(first: Tensor, second: Tensor) -> Tensor:
    merged: Tensor = torch.cat([first, second]).unique()  # type: ignore[no-untyped-call]
    return merged
