"""Deltas of models that are spread over ranks: each rank has the coordinates that it holds, and exchanges sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rlforget.delta.tensor_delta import TensorDelta
from rlforget.errors import LayoutError, WrongBaseError
from rlforget.weights import Layout, Pair, Weights, WeightsLike, open_weights, pair_up
from rlforget.weights.box import Box
from rlforget.weights.digest import signed
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding
from rlforget_kernels.fingerprint import fingerprint_after_patch

if TYPE_CHECKING:
    from rlforget.delta.delta import Delta


def totals(sharding: Sharding, here: Mapping[str, int]) -> dict[str, int]:
    """Add up a number a tensor over the ranks. Every rank has to call this."""
    return {name: total for name, (total,) in sharding.total({n: [count] for n, count in here.items()}).items()}


def sharding_of_pairs(pairs: Iterable[Pair], before: Weights, after: Weights) -> Sharding | None:
    """Return how two sets of weights lie on the ranks, by the names of their pairs; None: whole, both of them."""
    if after.sharding is not None:
        return after.sharding.renamed({pair.name: pair.after for pair in pairs})
    if before.sharding is not None:
        return before.sharding.renamed({pair.name: pair.before for pair in pairs})
    return None


def whole_fingerprints(tensors: Iterable[TensorDelta], sharding: Sharding) -> list[TensorDelta]:
    """Give tensors whose fingerprints are of what lies here those of the whole. Every rank has to call this.

    Raises:
        WrongBaseError: Ranks that hold copies of one block, or of a whole tensor, have other bits there.
    """
    several = list(tensors)
    here = {t.name: (sharding.boxes[t.name], [*t.fingerprint_before, *t.fingerprint_after]) for t in several}
    blocks: dict[str, dict[Box, list[int]]] = {t.name: {} for t in several}
    for place, told in enumerate(gathered(here)):
        for name, (box, lanes) in told.items():
            if box.numel and blocks[name].setdefault(box, lanes) != lanes:
                raise WrongBaseError(
                    f"tensor {name!r} on rank {place}",
                    expected="the bits of the other ranks that hold a copy of it",
                    found="others",
                    fix="Broadcast it from one rank, or save and load the model again.",
                )
    sums = {
        name: [sum(lanes) for lanes in zip((0,) * 4, *found.values(), strict=True)] for name, found in blocks.items()
    }
    return [
        replace(t, fingerprint_before=signed(sums[t.name][:2]), fingerprint_after=signed(sums[t.name][2:]))
        for t in several
    ]


def led_on(tensors: Iterable[TensorDelta], sharding: Sharding) -> list[TensorDelta]:
    """Work the fingerprint after out of that before and of all ranks' changes. Every rank has to call this."""
    several = list(tensors)
    none = torch.zeros(2, dtype=torch.int64)
    told = sharding.total(
        {t.name: fingerprint_after_patch(none, t.indices, t.before_bits, t.after_bits).tolist() for t in several}
    )
    return [
        replace(t, fingerprint_after=signed([a + b for a, b in zip(t.fingerprint_before, told[t.name], strict=True)]))
        for t in several
    ]


def sharded(delta: Delta, weights: WeightsLike) -> Delta:
    """Return what of a whole delta lies on this rank; see `Delta.sharded`."""
    from rlforget.delta.delta import Delta

    held = open_weights(weights, shards=True)
    if held.sharding is None or delta.sharding is not None:
        raise LayoutError(
            held.description if held.sharding is None else "the delta",
            expected="weights that are spread over ranks, and a whole delta",
            found="whole weights" if held.sharding is None else "this rank's part of one",
            fix="Use the delta as it is.",
        )
    check_kept(delta, held)
    sharding = held.sharding.renamed({pair.name: pair.after for pair in pair_up(delta.layout, held)})
    tensors = []
    for name, tensor in delta.items():
        kept = sharding.boxes[name].holds(tensor.indices)
        tensors.append(
            replace(
                tensor,
                indices=tensor.indices[kept],
                before_bits=tensor.before_bits[kept],
                after_bits=tensor.after_bits[kept],
            )
        )
    return Delta(tensors, aliases=delta.aliases, metadata=delta.metadata, sharding=sharding)


def check_alike(weights: Weights, delta: Delta) -> None:
    """Hold that weights and a delta are both whole, or both spread over ranks.

    Raises:
        LayoutError: One is, the other is not.
    """
    if (weights.sharding is None) != (delta.sharding is None):
        raise LayoutError(
            weights.description,
            expected="a whole delta" if weights.sharding is None else "the part of the delta that lies on this rank",
            found="a part of one" if weights.sharding is None else "a whole one",
            fix="Give whole weights, too." if weights.sharding is None else "Take delta.sharded(model), on every rank.",
        )


def check_whole(*deltas: Delta) -> None:
    """Hold that deltas are whole ones.

    Raises:
        LayoutError: One is a rank's part.
    """
    if any(delta.sharding is not None for delta in deltas):
        raise LayoutError(
            "the delta",
            expected="a whole one",
            found="this rank's part of one, whose weights are spread over ranks",
            fix="Save it on every rank with .save(path), and load it from there.",
        )


def check_kept(delta: Delta, weights: Layout) -> None:
    """Hold that a delta of sharded weights changes nothing but bits.

    Raises:
        LayoutError: It adds, drops, resizes, retypes or renames tensors.
    """
    if others := [*delta.whole, *delta.renamed]:
        raise not_kept(weights, others)


def not_kept(weights: Layout, others: list[str]) -> LayoutError:
    """Build the error for tensors of sharded weights that do not keep names, shapes and dtypes."""
    return LayoutError(
        f"{weights.description}, tensor {others[0]!r}",
        expected="tensors that keep their names, shapes and dtypes, since the weights are spread over ranks",
        found=f"{len(others)} that do not",
        fix="Compare or change checkpoints instead.",
    )
