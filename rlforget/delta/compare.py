"""Finding what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.scan import Comparison, WholePair
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.delta.whole import FileDelta, WholeDelta, file_content
from rlforget.weights import Pair, Weights, WeightsLike, open_weights
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.fingerprint import fingerprint, foreach_fingerprint
from rlforget_kernels.sparse_delta import foreach_sparse_delta

_BATCH_BYTES = 64 << 20  # of one side: many small tensors share a launch, and a large cache still holds what it read


def diff(
    before: WeightsLike,
    after: WeightsLike,
    *,
    rename: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Delta:
    """Find every coordinate whose stored bits differ, and all else that does.

    A batch of tensor pairs is read at a time; where one of the two is on an accelerator, the other one follows it
    there. Between two checkpoint folders the files that are no weights (config, tokenizer) are compared too.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise.
        rename: {name before: name after}, for tensors that are not called the same.
        metadata: Strings to keep with the delta.

    Returns:
        A lossless delta, held on the CPU: 8 bytes a changed coordinate in bfloat16. Tensors on one side alone, resized
        or retyped are in its `.whole`. To compare checkpoints in bounded memory, see `rlforget.delta.write_diff`.

    Raises:
        LayoutError: The two have no tensor in common.
        UnknownNameError: `rename` has a name that is not there.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    found = Comparison(open_weights(before), open_weights(after), rename)
    batches = _batches(_loaded(found.pairs, found.before, found.after))
    return Delta(
        (tensor for batch in batches for tensor in _compare(batch)),
        whole=(_whole(pair, found.before, found.after) for pair in found.whole),
        files=changed_files(found.before, found.after),
        renamed=found.renamed,
        aliases=found.aliases,
        metadata=metadata,
    )


def changed_files(before: Weights, after: Weights) -> list[FileDelta]:
    """Return what changed among the files that are no weights; nothing where one side is not a checkpoint folder."""
    old, new = before.files(), after.files()
    if old is None or new is None:
        return []
    changed = []
    for name in sorted(old.keys() | new.keys()):
        was, now = (file_content(files.get(name)) for files in (old, new))
        if was != now:
            changed.append(FileDelta(name, was, now))
    return changed


def _whole(pair: WholePair, old: Weights, new: Weights) -> WholeDelta:
    before = None if pair.before is None else _copy(old, pair.before)
    after = None if pair.after is None else _copy(new, pair.after)
    lanes = [None if t is None else _lanes(fingerprint(t).tolist()) for t in (before, after)]
    return WholeDelta(pair.name, before, after, *lanes)


def _copy(weights: Weights, name: str) -> torch.Tensor:
    """Return a tensor in memory of its own: live weights and files change, and a delta must not."""
    meta = weights.meta(name)
    bits = torch.empty(meta.numel, dtype=bits_dtype(meta.dtype))
    return weights.bits(name, out=bits).view(meta.dtype).view(meta.shape)


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
