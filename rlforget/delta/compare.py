"""Finding what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from rlforget.delta.sparse import Delta, Fingerprint, TensorDelta
from rlforget.weights import Weights, WeightsLike, merged_aliases, open_weights, pair_up
from rlforget.weights.layout import Pair
from rlforget_kernels.fingerprint import foreach_fingerprint
from rlforget_kernels.sparse_delta import foreach_sparse_delta

_BATCH_BYTES = 64 << 20  # of one side: many small tensors share a launch, and a large cache still holds what it read


def diff(before: WeightsLike, after: WeightsLike, *, metadata: Mapping[str, str] | None = None) -> Delta:
    """Find every coordinate whose stored bits differ.

    A batch of tensor pairs is read at a time; where one of the two is on an accelerator, the other one follows it
    there.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise, with the same tensors.
        metadata: Strings to keep with the delta.

    Returns:
        A lossless delta, held on the CPU: 8 bytes a changed coordinate in bfloat16.

    Raises:
        LayoutError: Tensors are missing, extra, resized or retyped.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    old, new = open_weights(before), open_weights(after)
    pairs = pair_up(old, new)
    batches = _batches(_loaded(pairs, old, new))
    tensors = (tensor for batch in batches for tensor in _compare(batch))
    return Delta(tensors, aliases=merged_aliases(pairs, old, new), metadata=metadata)


@dataclass(frozen=True)
class _Sides:
    """A tensor before and after, on one device."""

    name: str
    before: torch.Tensor
    after: torch.Tensor


def _loaded(pairs: Iterable[Pair], old: Weights, new: Weights) -> Iterator[_Sides]:
    for name, name_before, name_after in pairs:
        before, after = old.tensor(name_before), new.tensor(name_after)
        device = after.device if before.device.type == "cpu" else before.device
        yield _Sides(name, before.to(device), after.to(device))


def _batches(sides: Iterable[_Sides]) -> Iterator[list[_Sides]]:
    """Yield runs, in order, of tensors on one device that take `_BATCH_BYTES` together, or of one that is larger."""
    batch: list[_Sides] = []
    room = _BATCH_BYTES
    for side in sides:
        if batch and (side.before.nbytes > room or side.before.device != batch[0].before.device):
            yield batch
            batch, room = [], _BATCH_BYTES
        batch.append(side)
        room -= side.before.nbytes
    if batch:
        yield batch


def _compare(batch: list[_Sides]) -> Iterator[TensorDelta]:
    before, after = [side.before for side in batch], [side.after for side in batch]
    found = zip(*foreach_sparse_delta(before, after), strict=True)
    fingerprints = foreach_fingerprint([*before, *after]).tolist()
    for number, (side, (indices, before_bits, after_bits)) in enumerate(zip(batch, found, strict=True)):
        yield TensorDelta(
            name=side.name,
            dtype=side.before.dtype,
            shape=tuple(side.before.shape),
            indices=indices.cpu(),
            before_bits=before_bits.cpu(),
            after_bits=after_bits.cpu(),
            fingerprint_before=_lanes(fingerprints[number]),
            fingerprint_after=_lanes(fingerprints[len(batch) + number]),
        )


def _lanes(pair: list[int]) -> Fingerprint:
    first, second = pair
    return first, second
